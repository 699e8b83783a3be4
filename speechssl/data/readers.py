"""From whatever lists a corpus to checked utterances: every file is opened, bad ones are counted.

The length of an utterance is what the file's header says, never what the list says.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from speechssl.audio import io
from speechssl.data import listings
from speechssl.data.listings import Entry
from speechssl.data.manifest import read_manifest, rows
from speechssl.data.skips import Skip, Skips
from speechssl.errors import AudioError, DataError
from speechssl.types import Utterance

log = logging.getLogger(__name__)

Kind = Literal["auto", "folder", "kaldi", "fairseq", "nemo", "jsonl"]
Progress = Callable[..., Iterable[Any]]
TOLERANCE_SEC = 0.1  # between a length a list states and the header: lists round


def gather(
    source: str | Path,
    kind: Kind = "auto",
    *,
    full_check: bool = False,
    jobs: int = 1,
    progress: Progress | bool | None = None,
) -> tuple[list[Utterance], Skips]:
    """Read a folder of audio, a Kaldi directory, a fairseq tsv, a NeMo or other jsonl.

    `full_check` decodes every span to its end and drops silent ones; `jobs` threads open files.
    `progress(iterable, total=n)` may wrap the work (tqdm does; True means tqdm). The order of the
    list is kept. Audio that cannot be used is in the Skips, whose `check` decides whether to go on.
    Raises DataError when the list itself cannot be read, ManifestError for one of ours with a bad
    line.
    """
    source = Path(source)
    kind = _kind(source, kind)
    listed = list(_listed(source, kind))
    if not listed:
        raise DataError(
            f"{source}: nothing found ({kind}); expected sound files with one of the suffixes "
            f"{', '.join(sorted(io.SUFFIXES))}, or a list of them"
        )
    examine = _Examiner(full_check)
    skips = Skips()
    kept: dict[str, Utterance] = {}
    for item, found in zip(listed, _mapped(examine, listed, jobs, progress), strict=True):
        if isinstance(found, Skip):
            skips.add(*found)
        elif found.id in kept:
            where = getattr(item, "where", found.audio)
            skips.add("duplicate_id", where, f"{where}: id '{found.id}' comes twice")
        else:
            kept[found.id] = found
    if skips.total:
        log.warning("%s: left out %d of %d", source, skips.total, len(listed))
    return list(kept.values()), skips


def _kind(source: Path, kind: Kind) -> Kind:
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if kind != "auto":
        return kind
    if source.is_dir():
        if (source / "wav.scp").exists():
            return "kaldi"
        return "jsonl" if (source / "manifest.jsonl").exists() else "folder"
    if source.suffix == ".tsv":
        return "fairseq"
    if source.suffix in (".jsonl", ".json"):
        return "nemo" if "audio_filepath" in _first_row(source) else "jsonl"
    raise DataError(
        f"{source}: cannot tell what this is, expected a folder, .tsv, .jsonl or .json; "
        "or say the kind"
    )


def _listed(source: Path, kind: Kind) -> Iterator[Entry | Skip | Utterance]:
    if kind == "jsonl":
        source = source / "manifest.jsonl" if source.is_dir() else source
        ours = "num_samples" in _first_row(source)
        yield from read_manifest(source) if ours else listings.plain_jsonl(source)
        return
    if source.is_dir() != (kind in ("folder", "kaldi")):
        raise DataError(f"{source}: a {'folder' if source.is_dir() else 'file'} is no {kind} list")
    read = {
        "folder": listings.folder,
        "kaldi": listings.kaldi,
        "fairseq": listings.fairseq,
        "nemo": listings.nemo,
    }[kind]
    yield from read(source)


def _first_row(source: Path) -> dict[str, Any]:
    return next((row for _, row in rows(source)), {})


def _mapped(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    jobs: int,
    progress: Progress | bool | None,
) -> Iterator[Any]:
    """Results in the order of `items`; decoding releases Python's lock, so threads are enough."""
    if progress is True:
        from tqdm import tqdm

        progress = tqdm
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        results = map(function, items) if jobs <= 1 else pool.map(function, items)
        yield from progress(results, total=len(items)) if progress else results


class _Examiner:
    """Opens files, each header once however many spans share it."""

    def __init__(self, full_check: bool) -> None:
        self.full_check = full_check
        self._headers: dict[str, io.AudioInfo | AudioError] = {}
        self._lock = threading.Lock()

    def __call__(self, item: Entry | Skip | Utterance) -> Utterance | Skip:
        if isinstance(item, Skip):
            return item
        where = item.where if isinstance(item, Entry) else f"id '{item.id}'"
        try:
            info = self._header(item.audio)
            found = _span(item, info) if isinstance(item, Entry) else _checked(item, info)
            if self.full_check:
                _check_sound(found)
        except AudioError as error:
            return Skip(error.kind, where, str(error))
        return found

    def _header(self, path: str) -> io.AudioInfo:
        if path not in self._headers:
            try:
                info = io.probe(path)
            except AudioError as error:
                info = error
            with self._lock:
                self._headers[path] = info
        info = self._headers[path]
        if isinstance(info, AudioError):
            raise AudioError(str(info), info.kind)
        return info


def _span(entry: Entry, info: io.AudioInfo) -> Utterance:
    """The utterance an entry means, in samples of the file."""
    seconds = info.num_samples / info.rate_hz
    if entry.stated_samples is not None and entry.stated_samples != info.num_samples:
        raise AudioError(
            f"{entry.audio}: {info.num_samples} samples, {entry.where} says "
            f"{entry.stated_samples}; the list was made from another file",
            "mismatch",
        )
    if entry.stated_sec is not None and not abs(entry.stated_sec - seconds) <= TOLERANCE_SEC:
        raise AudioError(
            f"{entry.audio}: {seconds:.3f} s, {entry.where} says {entry.stated_sec} s; "
            "the list was made from another file",
            "mismatch",
        )
    start = round(entry.start_sec * info.rate_hz)
    length = info.num_samples - start
    if entry.length_sec is not None:
        wanted = round(entry.length_sec * info.rate_hz)
        over = wanted - length
        length = min(wanted, length)
        if over > TOLERANCE_SEC * info.rate_hz:
            length = 0
    if start < 0 or length <= 0:
        raise AudioError(
            f"{entry.audio}: {entry.where} asks for {entry.start_sec} s + {entry.length_sec} s, "
            f"the file has {seconds:.3f} s",
            "span",
        )
    if len(entry.id.split()) != 1:
        raise AudioError(
            f"{entry.where}: id {entry.id!r} is empty or holds blanks; rename it", "bad_id"
        )
    return Utterance(
        id=entry.id,
        audio=str(Path(entry.audio).absolute()),
        num_samples=length,
        rate_hz=info.rate_hz,
        start=start,
        text=None if entry.text is None else " ".join(entry.text.split()),
        speaker=entry.speaker or None,
        extra=dict(entry.extra),
    )


def _checked(utterance: Utterance, info: io.AudioInfo) -> Utterance:
    """One of our own manifest lines, compared with the header."""
    if utterance.rate_hz != info.rate_hz:
        raise AudioError(
            f"{utterance.audio}: {info.rate_hz} Hz, the manifest says {utterance.rate_hz}; "
            "make the manifest again",
            "mismatch",
        )
    if utterance.start + utterance.num_samples > info.num_samples:
        raise AudioError(
            f"{utterance.audio}: {info.num_samples} samples, the manifest asks for "
            f"{utterance.start} to {utterance.start + utterance.num_samples}",
            "span",
        )
    return replace(utterance)


def _check_sound(utterance: Utterance) -> None:
    level = io.measure(utterance.audio, utterance.start, utterance.num_samples)
    if level.rms_dbfs < io.SILENCE_DBFS:
        raise AudioError(
            f"{utterance.audio}: silent, {level.rms_dbfs:.0f} dBFS, expected above "
            f"{io.SILENCE_DBFS:g}; nothing can be learnt from it",
            "silent",
        )
    if level.clipped > 0.01:
        log.warning("%s: %.1f%% of the samples are clipped", utterance.audio, 100 * level.clipped)
