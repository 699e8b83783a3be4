"""Work on a manifest in shards: any number of processes, each goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from speechssl.atomic import write_text
from speechssl.errors import ConfigError, DataError
from speechssl.types import Utterance

T = TypeVar("T")
#: Wraps work so that it shows: (items, how many, what they are for) -> the items.
Shown = Callable[[Iterable[T], int, str], Iterable[T]]


def unseen(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    """The items, and nothing to be seen of them."""
    return items


def split_shards(
    utterances: Sequence[Utterance], shard_sec: float
) -> Iterator[Sequence[Utterance]]:
    """Consecutive stretches of about `shard_sec` seconds, at least one utterance each."""
    if shard_sec <= 0:
        raise ConfigError(f"shard_sec: got {shard_sec}, expected seconds above 0")
    start, seconds = 0, 0.0
    for index, utterance in enumerate(utterances):
        if index > start and seconds + utterance.seconds > shard_sec:
            yield utterances[start:index]
            start, seconds = index, 0.0
        seconds += utterance.seconds
    if start < len(utterances):
        yield utterances[start:]


def claim(out: Path, metadata: dict[str, Any]) -> None:
    """Write metadata.json, or raise ConfigError where the one there says something else."""
    path = out / "metadata.json"
    if not path.exists():
        write_text(path, json.dumps(metadata, indent=2) + "\n")
        return
    found = read_json(path)
    changed = [k for k in metadata if found.get(k) != metadata[k]]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{out} was written with other settings ({', '.join(changed)}): {key} is "
            f"{found.get(key)!r} there, {metadata[key]!r} now; use another folder or remove it"
        )


def fingerprint(utterances: Sequence[Utterance]) -> str:
    """Which spans of which files these are, in short: shards of two manifests must never mix."""
    digest = hashlib.blake2b(digest_size=16)
    for u in utterances:
        line = json.dumps([u.id, u.audio, u.start, u.num_samples, u.rate_hz])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def beside(path: Path, suffix: str) -> Path:
    """The file of the same shard with another suffix."""
    return path.with_name(path.name.removesuffix(".done") + suffix)


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file. Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path.parent} cannot be used: {path.name}: {error}") from error
