"""What other toolkits' lists say, before any audio is looked at.

Each function yields `Entry` for a usable line and `Skip` for one that is not; a list that is
misaligned as a whole raises DataError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from speechssl.audio.io import SUFFIXES
from speechssl.data.manifest import rows
from speechssl.data.skips import Skip
from speechssl.errors import DataError


@dataclass(frozen=True, slots=True)
class Entry:
    """One recording or span as listed. Lengths the list states are checked against the header."""

    id: str
    audio: str
    where: str  # file and line, for messages
    start_sec: float = 0.0
    length_sec: float | None = None  # of the span; None reads to the end
    stated_sec: float | None = None  # length of the whole file as the list has it
    stated_samples: int | None = None
    text: str | None = None
    speaker: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def folder(source: Path) -> Iterator[Entry | Skip]:
    """Every sound file below `source`, sorted; the id is the relative path without suffix."""
    used: set[str] = set()
    for path in sorted(_walk(source)):
        relative = os.path.relpath(path, source)
        try:
            relative.encode("utf-8")
        except UnicodeEncodeError:
            yield Skip("bad_name", repr(path), f"{path!r}: the file name is not UTF-8; rename it")
            continue
        if re.search(r"[\n\r\x00]", relative):
            yield Skip("bad_name", repr(path), f"{path!r}: line break in the name; rename it")
            continue
        stem, suffix = os.path.splitext(relative)
        name = _without_blanks(stem.replace(os.sep, "-"))
        if name in used:  # a.wav beside a.flac, or a/b.wav beside a-b.wav
            name += suffix.replace(".", "-")
        count = 2
        while name in used:
            name, count = f"{name.removesuffix(f'-{count - 1}')}-{count}", count + 1
        used.add(name)
        yield Entry(name, path, path)


def kaldi(source: Path) -> Iterator[Entry | Skip]:
    """A Kaldi data directory: wav.scp, and segments, text, utt2spk, utt2dur where there are any.

    Commands (lines ending in `|`) are not run. Relative paths count from the working folder as in
    Kaldi, or from the data directory or a folder above it, wherever the first file exists.
    """
    recordings = dict(_table(source / "wav.scp"))
    base = _kaldi_base(source, recordings)
    texts, speakers, seconds = (
        dict(_table(source / name)) if (source / name).exists() else {}
        for name in ("text", "utt2spk", "utt2dur")
    )
    segments = source / "segments"
    spans = list(_table(segments)) if segments.exists() else [(r, r) for r in recordings]
    where = str(segments if segments.exists() else source / "wav.scp")
    for id_, span in spans:
        fields = span.split()
        recording = recordings.get(fields[0] if fields else "")
        at = f"{where} ({id_})"
        if recording is None:
            yield Skip("no_recording", at, f"{at}: recording {span!r} is not in wav.scp")
            continue
        if recording.endswith("|"):
            yield Skip(
                "pipe",
                at,
                f"{at}: wav.scp holds a command, which is not run: {recording!r}; "
                "write its output to files first (Kaldi: wav-copy scp:wav.scp ark,scp:...)",
            )
            continue
        start_sec, length_sec = 0.0, None
        if segments.exists():
            try:
                start_sec, end_sec = float(fields[1]), float(fields[2])
            except (IndexError, ValueError):
                yield Skip("bad_line", at, f"{at}: got {span!r}, expected 'RECORDING START END'")
                continue
            length_sec = end_sec - start_sec if end_sec >= 0 else None  # -1: to the end
        whole = length_sec is None and start_sec == 0.0
        yield Entry(
            id_,
            os.path.join(base, recording),
            at,
            start_sec,
            length_sec,
            stated_sec=_number(seconds.get(id_)) if whole else None,
            text=texts.get(id_),
            speaker=speakers.get(id_),
        )


def fairseq(source: Path) -> Iterator[Entry | Skip]:
    """A fairseq tsv (root folder, then `path<TAB>frames`), with .wrd or .ltr beside it."""
    lines = _lines(source)
    if not lines:
        raise DataError(f"{source}: empty, expected the root folder on line 1")
    root = source.parent / lines[0]
    words, letters = (source.with_suffix(suffix) for suffix in (".wrd", ".ltr"))
    texts: list[str] = []
    if words.exists():
        texts = _lines(words)
    elif letters.exists():
        texts = ["".join(line.split()).replace("|", " ").strip() for line in _lines(letters)]
    if texts and len(texts) != len(lines) - 1:
        name = words.name if words.exists() else letters.name
        raise DataError(
            f"{source}: {len(lines) - 1} files but {len(texts)} lines in {name}; "
            "the lists belong to different sets, make both again"
        )
    used: set[str] = set()
    for number, (line, text) in enumerate(zip_longest(lines[1:], texts), 2):
        at = f"{source} line {number}"
        name, _, frames = line.partition("\t")
        if not name or not frames.strip().isdigit():
            yield Skip("bad_line", at, f"{at}: got {line!r}, expected 'PATH<TAB>SAMPLES'")
            continue
        id_ = _without_blanks(os.path.splitext(name)[0].replace("/", "-"))
        id_ = id_ if id_ not in used else f"{id_}-{number}"
        used.add(id_)
        yield Entry(id_, str(root / name), at, stated_samples=int(frames), text=text)


def nemo(source: Path) -> Iterator[Entry | Skip]:
    """A NeMo manifest: audio_filepath, duration, offset, text; other keys go to `extra`."""
    known = {"audio_filepath", "duration", "offset", "text", "speaker", "id"}
    for number, row in rows(source):
        at = f"{source} line {number}"
        name = row.get("audio_filepath")
        start_sec = _number(row.get("offset", 0.0) or 0.0)
        length_sec = _number(row.get("duration"))
        if not isinstance(name, str) or not name or start_sec is None or start_sec < 0:
            yield Skip(
                "bad_line", at, f"{at}: expected audio_filepath (string) and offset >= 0; got {row}"
            )
            continue
        is_span = row.get("offset") is not None  # 0.0 too: the first span of a recording
        stem = _without_blanks(os.path.splitext(name)[0].replace("/", "-").strip("-."))
        id_ = _string(row.get("id")) or (f"{stem}-{number}" if is_span else stem)
        yield Entry(
            id_,
            str(source.parent / name),
            at,
            start_sec,
            length_sec if is_span else None,
            stated_sec=None if is_span else length_sec,
            text=_string(row.get("text")),
            speaker=_string(row.get("speaker")),
            extra={key: value for key, value in row.items() if key not in known},
        )


def plain_jsonl(source: Path) -> Iterator[Entry | Skip]:
    """JSON lines of whole files with keys id, audio, duration, speaker, text; others are kept."""
    known = {"id", "audio", "duration", "sample_rate", "speaker", "text"}
    for number, row in rows(source):
        at = f"{source} line {number}"
        id_, audio = _string(row.get("id")), _string(row.get("audio"))
        if not id_ or not audio:
            yield Skip("bad_line", at, f"{at}: id and audio are needed (strings), got {row}")
            continue
        yield Entry(
            id_,
            str(source.parent / audio),
            at,
            stated_sec=_number(row.get("duration")),
            text=_string(row.get("text")),
            speaker=_string(row.get("speaker")),
            extra={key: value for key, value in row.items() if key not in known},
        )


def _walk(top: Path) -> Iterator[str]:
    """Files with a sound suffix, links to folders followed once, hidden names left out."""
    entered: set[str] = set()
    for here, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(here)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(here, name)


def _kaldi_base(source: Path, recordings: Mapping[str, str]) -> Path:
    first = next((p for p in recordings.values() if not p.endswith("|")), "")
    bases = (Path.cwd(), source, source.parent, source.parent.parent)
    return next((base for base in bases if (base / first).exists()), source)


def _table(path: Path) -> Iterator[tuple[str, str]]:
    """(key, rest) of every line that is not blank; blanks or tabs part them."""
    for line in filter(str.strip, _lines(path)):
        key, *rest = line.split(None, 1)
        yield key, rest[0].strip() if rest else ""


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {number}: not UTF-8; convert the file to UTF-8") from error
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _without_blanks(name: str) -> str:
    return re.sub(r"\s+", "_", name)


def _string(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
