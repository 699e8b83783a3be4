"""Manifests: one JSON object a line, each a span of an audio file.

Keys: id, audio, start, num_samples, rate_hz, duration (seconds, derived), text, speaker, labels;
any other key is kept in `Utterance.extra`. `audio` and the file in `labels` (FILE#ROW) are
relative to the manifest's folder or absolute. Lines end in LF or CRLF, a byte-order mark is
accepted, blank lines are ignored.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from speechssl.atomic import write_text
from speechssl.errors import DataError, ManifestError
from speechssl.types import Utterance

KEYS = ("id", "audio", "start", "num_samples", "rate_hz", "duration", "text", "speaker", "labels")
DURATION_TOLERANCE_SEC = 0.01
_UNSAFE = re.compile(r"[\n\r\x00]")


def read_manifest(
    path: str | Path, *, roots: Sequence[str | Path] | None = None
) -> list[Utterance]:
    """Read and check every line. Paths come back absolute; no audio is opened.

    When `roots` are given, every audio file must lie below one of them (links not followed).
    Raises ManifestError naming line and field; an empty manifest is an error too.
    """
    path = Path(path)
    allowed = None if roots is None else [os.path.abspath(root) for root in roots]
    utterances: list[Utterance] = []
    lines: dict[str, int] = {}
    for number, row in rows(path):
        where = _Where(path, number, row.get("id"))
        utterance = _utterance(row, where)
        first = lines.setdefault(utterance.id, number)
        if first != number:
            where.fail(f"id is already that of line {first}, expected unique ids")
        if allowed is not None and not any(_below(utterance.audio, root) for root in allowed):
            where.fail(
                f"audio is {utterance.audio!r}, expected below {' or '.join(allowed)}; "
                "allow its folder or move the file"
            )
        utterances.append(utterance)
    if not utterances:
        raise ManifestError(f"manifest {path}: no utterances; make it again")
    return utterances


def rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of every line that is not blank, in whatever keys it has.

    Raises ManifestError on bytes that are not UTF-8, bad JSON, NaN, and lines that are no object.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(
            f"manifest {path}: cannot be read: {error.strerror}; check the path"
        ) from error
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        where = _Where(path, number, None)
        try:
            row = json.loads(raw.decode("utf-8"), parse_constant=where.constant)
        except UnicodeDecodeError as error:
            where.fail(f"byte {error.start + 1} is not UTF-8; convert the file to UTF-8", error)
        except json.JSONDecodeError as error:
            where.fail(f"not JSON ({error.msg} at column {error.colno}); repair the line", error)
        if not isinstance(row, dict):
            where.fail(f"got {_kind(row)}, expected a JSON object with keys {', '.join(KEYS[:5])}")
        yield number, row


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write atomically; audio and labels below the manifest's folder are written relative to it.

    Raises DataError on a repeated id, ManifestError on values that `read_manifest` would refuse.
    """
    path = Path(path)
    folder = os.path.abspath(path.parent)
    seen: set[str] = set()
    lines = []
    for number, utterance in enumerate(utterances, 1):
        if utterance.id in seen:
            raise DataError(f"manifest {path}: id '{utterance.id}' comes twice; ids must be unique")
        seen.add(utterance.id)
        row = _row(utterance, folder)
        _utterance(row, _Where(path, number, utterance.id))
        try:
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        except (ValueError, TypeError) as error:
            raise ManifestError(f"manifest {path} (id '{utterance.id}'): {error}") from error
    write_text(path, "".join(lines))


def describe(utterances: Sequence[Utterance]) -> dict[str, Any]:
    """Counts and lengths: what `speechssl manifest` prints. Lengths in seconds, totals in hours."""
    seconds = np.array([u.seconds for u in utterances])
    texts = [u.text for u in utterances if u.text is not None]
    speakers = {u.speaker for u in utterances if u.speaker is not None}
    rates = sorted({u.rate_hz for u in utterances})
    summary: dict[str, Any] = {
        "utterances": len(utterances),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "speakers": len(speakers),
        "without_speaker": sum(u.speaker is None for u in utterances),
        "transcribed": len(texts),
        "words": sum(len(text.split()) for text in texts),
        "characters": "".join(sorted(set("".join(texts)))),
        "rates_hz": {rate: sum(u.rate_hz == rate for u in utterances) for rate in rates},
    }
    if len(utterances):
        quantiles = np.quantile(seconds, [0, 0.05, 0.5, 0.95, 1])
        names = ("min", "p05", "median", "p95", "max")
        summary["seconds"] = {n: round(float(q), 3) for n, q in zip(names, quantiles, strict=True)}
    return summary


class _Where:
    """The line an error is about."""

    def __init__(self, path: Path, number: int, id_: object) -> None:
        self.path, self.number, self.id = path, number, id_

    def fail(self, what: str, cause: Exception | None = None) -> NoReturn:
        name = f" (id '{self.id}')" if isinstance(self.id, str) and self.id else ""
        raise ManifestError(f"manifest {self.path} line {self.number}{name}: {what}") from cause

    def constant(self, name: str) -> NoReturn:
        self.fail(f"holds {name}, expected finite numbers; make the manifest again")


def _utterance(row: dict[str, Any], where: _Where) -> Utterance:
    for key in ("id", "audio", "num_samples", "rate_hz"):
        if row.get(key) is None:
            where.fail(f"{key} is missing; add it or make the manifest again")
    num_samples = _integer(row, "num_samples", where, least=1)
    rate_hz = _integer(row, "rate_hz", where, least=1)
    start = 0 if row.get("start") is None else _integer(row, "start", where, least=0)
    _check_duration(row.get("duration"), num_samples / rate_hz, where)
    id_ = _string(row, "id", where)
    if not id_ or len(id_.split()) != 1 or id_ != id_.strip():
        where.fail(f"id is {id_!r}, expected a name without blanks (as trn and Kaldi files need)")
    audio = _string(row, "audio", where)
    if not audio:
        where.fail("audio is empty, expected a path")
    optional = {
        key: None if row.get(key) is None else _string(row, key, where)
        for key in ("text", "speaker", "labels")
    }
    folder = os.path.abspath(where.path.parent)
    if optional["labels"] is not None:
        optional["labels"] = os.path.normpath(os.path.join(folder, optional["labels"]))
    return Utterance(
        id=id_,
        audio=os.path.normpath(os.path.join(folder, audio)),
        num_samples=num_samples,
        rate_hz=rate_hz,
        start=start,
        **optional,
        extra={key: value for key, value in row.items() if key not in KEYS},
    )


def _integer(row: dict[str, Any], key: str, where: _Where, *, least: int) -> int:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int):
        where.fail(f"{key} is {value!r} ({_kind(value)}), expected a whole number")
    if value < least:
        bound = "> 0" if least == 1 else ">= 0"
        where.fail(f"{key} is {value}, expected {bound}; make the manifest again or drop the line")
    return value


def _string(row: dict[str, Any], key: str, where: _Where) -> str:
    value = row[key]
    if not isinstance(value, str):
        where.fail(f"{key} is {value!r} ({_kind(value)}), expected a string")
    if _UNSAFE.search(value):
        where.fail(f"{key} is {value!r}: line breaks and NUL are not allowed; rename the file")
    return value


def _check_duration(value: object, seconds: float, where: _Where) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        where.fail(f"duration is {value!r}, expected a finite number of seconds")
    if abs(value - seconds) > DURATION_TOLERANCE_SEC:
        where.fail(
            f"duration is {value} s but num_samples / rate_hz is {seconds:.4f} s; "
            "make the manifest again"
        )


def _row(utterance: Utterance, folder: str) -> dict[str, Any]:
    def seen_from_here(path: str) -> str:
        path = os.path.abspath(path)
        return os.path.relpath(path, folder) if _below(path, folder) else path

    row = {
        "id": utterance.id,
        "audio": seen_from_here(utterance.audio),
        "start": utterance.start,
        "num_samples": utterance.num_samples,
        "rate_hz": utterance.rate_hz,
        "duration": round(utterance.seconds, 4) if utterance.rate_hz > 0 else 0.0,
        "text": utterance.text,
        "speaker": utterance.speaker,
        "labels": None if utterance.labels is None else seen_from_here(utterance.labels),
    }
    return row | {key: value for key, value in utterance.extra.items() if key not in KEYS}


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
