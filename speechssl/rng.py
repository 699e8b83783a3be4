"""Stateless randomness: a generator is a function of a key, so nothing depends on order or rank.

A key is any mix of integers and strings, for example `(seed, epoch, utterance id, "mask")`.
Python's own `hash` is salted per process and therefore never used.
"""

from __future__ import annotations

import hashlib

import numpy as np

Key = int | str


def seed_from(*key: Key) -> int:
    """A 63-bit seed that depends on nothing but the key."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: Key) -> np.random.Generator:
    """A numpy generator for the key."""
    return np.random.Generator(np.random.PCG64(seed_from(*key)))
