"""speechocean762 (OpenSLR 101, CC BY 4.0): read English, half of it by children, 250 speakers.

Two layouts are read: the original (Kaldi directories `train` and `test`, audio in `WAVE`), and JSON
lines with a `split` key (`so762_full` or `so762`), beside which further corpora in that form are
taken as unlabelled speech. Source: Zhang et al. 2021 (arXiv 2104.01378).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.archive import fetch, unpack
from data_prep.lists import (
    all_of,
    command,
    finished,
    split_clips,
    tell_hours,
    unlabelled,
    write_lists,
)
from speechssl.errors import DataError
from speechssl.rng import generator
from speechssl.types import Utterance

log = logging.getLogger(__name__)

URL = "https://www.openslr.org/resources/101/speechocean762.tar.gz"
PUBLISHED = {"train": 2500, "test": 2500}  # utterances, of 125 speakers each
DEV_SPEAKERS = 15  # of the original test part, which has no dev part
LABELLED_SEC = {"asr_train_10min": 600.0, "asr_train_1h": 3600.0}
UNLABELLED = {  # corpus folder -> its splits, taken where they lie beside so762
    "libri_unlabeled": ("train_unlabeled",),
    "s2i": ("train",),
    "cv_en": ("train",),
    "an4": ("train",),
    "ljspeech_mini": ("train",),
}
_VALID_CLIPS = 100


def download(dest: str | Path) -> Path:
    """Fetch (0.5 GB, resumable) and unpack below `dest`; returns the corpus folder.

    OpenSLR publishes no checksum: the stated length and the archive's own checksums are tested.
    Raises DataError when the network or the archive fails.
    """
    dest = Path(dest)
    name = Path(URL).name
    if not (dest / f"{name}.completed").exists():
        unpack(fetch(URL, dest / name, None), dest)
    return dest / "speechocean762"


def prepare(corpus_dir: str | Path, out_dir: str | Path) -> dict[str, Path]:
    """Write the manifests of pre-training, recognition and speaker identification.

    pretrain (train speech less the speaker lists' dev and test clips, and the unlabelled corpora
    that lie beside it; without text), pretrain_valid (dev clips, less the same);
    asr_train_10min, asr_train_1h (nested, all train speakers alike; only where there is that much),
    asr_train_all, asr_dev, asr_test (three disjoint sets of speakers); spk_train, spk_dev, spk_test
    (all speakers, clips divided 70/15/15). Returns split -> path.
    Raises DataError when files are missing, damaged, or fewer than published.
    """
    corpus, out = Path(corpus_dir), Path(out_dir)
    root = _root(corpus)
    mark = root / "manifest.jsonl" if (root / "manifest.jsonl").exists() else root
    if (done := finished(out, "so762", mark)) is not None:
        return done
    parts = _jsonl(root) if mark.is_file() else _original(root)
    train, dev, test = (_transcribed(parts[split]) for split in ("train", "dev", "test"))
    whole = [u for part in parts.values() for u in part]
    order = _by_turns(train)
    by_clip = split_clips(whole, "so762")  # first: pre-training must not hear what these test
    heard = unlabelled(parts["train"], by_clip)
    tell_hours(root.name, heard)
    lists: dict[str, Sequence[Utterance]] = {
        "pretrain": [*heard, *_beside(root.parent)],
        "pretrain_valid": unlabelled(_by_turns(dev), by_clip)[:_VALID_CLIPS],
    }
    for name, seconds in LABELLED_SEC.items():
        if sum(u.seconds for u in order) < seconds:
            log.warning("%s: left out, the train part has less than %g s", name, seconds)
            continue
        taken = _take(order, seconds)
        chosen = {u.id for u in taken}
        order = taken + [u for u in order if u.id not in chosen]  # the next set holds this one
        lists[name] = sorted(taken, key=lambda u: u.id)
    lists |= {"asr_train_all": train, "asr_dev": dev, "asr_test": test}
    lists |= {f"spk_{split}": found for split, found in by_clip.items()}
    return write_lists(out, "so762", mark, lists)


def _root(corpus: Path) -> Path:
    candidates = (
        corpus,
        corpus / "so762_full",
        corpus / "so762",
        corpus / "speechocean762",
    )
    for root in candidates:
        if (root / "manifest.jsonl").is_file() or (root / "train" / "wav.scp").is_file():
            return root
    raise DataError(
        f"{corpus}: expected train/wav.scp and test/wav.scp (the original layout), or "
        "so762_full/manifest.jsonl, or so762/manifest.jsonl; fetch the original with "
        "'python -m data_prep.so762 download DEST'"
    )


def _jsonl(root: Path) -> dict[str, list[Utterance]]:
    utterances = all_of(root)
    parts: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for u in utterances:
        parts.setdefault(str(u.extra.get("split")), []).append(u)
    return parts


def _original(root: Path) -> dict[str, list[Utterance]]:
    parts = {split: all_of(root / split) for split in PUBLISHED}
    for split, published in PUBLISHED.items():
        if len(parts[split]) != published:
            raise DataError(
                f"{root / split}: {len(parts[split])} utterances, published are {published}; "
                "unpack the archive again"
            )
    speakers = sorted({u.speaker or "" for u in parts["test"]})
    held = set(generator("so762", "dev").permutation(speakers)[:DEV_SPEAKERS].tolist())
    parts["dev"] = [u for u in parts["test"] if u.speaker in held]
    parts["test"] = [u for u in parts["test"] if u.speaker not in held]
    return parts


def _beside(folder: Path) -> list[Utterance]:
    found: list[Utterance] = []
    for name, splits in UNLABELLED.items():
        if (folder / name / "manifest.jsonl").is_file():
            taken = [u for u in all_of(folder / name) if u.extra.get("split") in splits]
            tell_hours(name, taken)
            found += [replace(u, text=None) for u in taken]
    return found


def _transcribed(utterances: Iterable[Utterance]) -> list[Utterance]:
    """Upper-case letters, apostrophe and single blanks; other characters are refused."""
    clean = []
    for u in utterances:
        text = " ".join((u.text or "").upper().replace("\u2019", "'").replace("-", " ").split())
        if strange := sorted(set(re.sub("[A-Z' ]", "", text))):
            raise DataError(f"{u.id}: transcript {u.text!r} holds {strange}, expected letters")
        if text:
            clean.append(replace(u, text=text))
    return clean


def _by_turns(utterances: Sequence[Utterance]) -> list[Utterance]:
    """A keyed order in which every speaker has a clip before any has the next one."""
    by_speaker: dict[str, list[Utterance]] = {}
    for u in sorted(utterances, key=lambda u: u.id):
        by_speaker.setdefault(u.speaker or "", []).append(u)
    ranked: list[tuple[int, int, Utterance]] = []
    places = generator("so762", "speakers").permutation(len(by_speaker))
    for place, (speaker, clips) in zip(places, sorted(by_speaker.items()), strict=True):
        turns = generator("so762", "turns", speaker).permutation(len(clips))
        ranked += [(int(t), int(place), u) for t, u in zip(turns, clips, strict=True)]
    return [u for _, _, u in sorted(ranked, key=lambda item: item[:2])]


def _take(order: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Clips in order as long as they fit; the sum stays at or just below `seconds`."""
    taken, total = [], 0.0
    for u in order:
        if total + u.seconds <= seconds:
            taken.append(u)
            total += u.seconds
    return taken


if __name__ == "__main__":
    sys.exit(command("so762", __doc__ or "", download, prepare))
