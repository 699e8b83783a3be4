"""Utterance mixing of WavLM, slowly: one sample at a time, in float64.

Written from arXiv 2110.13900, algorithm 1, not from the library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def power(wave: Sequence[float]) -> float:
    """Mean of squares."""
    return sum(x * x for x in wave) / len(wave)


def mix(
    wave: Sequence[float],
    other: Sequence[float],
    *,
    ratio_db: float,
    length: int,
    into: int,
    source: int,
) -> list[float]:
    """`wave` with `length` samples of `other` from `source` on, added from `into` on."""
    scale = math.sqrt(power(wave) / (power(other) * 10 ** (ratio_db / 10)))
    mixed = list(wave)
    for i in range(length):
        mixed[into + i] += scale * other[source + i]
    return mixed
