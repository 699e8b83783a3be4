"""Free Spoken Digit Dataset (CC BY-SA 4.0): single English digits, and sentences joined from them.

Two layouts are read: the original (`recordings/DIGIT_SPEAKER_INDEX.wav`, 8 kHz) and JSON lines
(`fsdd/manifest.jsonl`, with `connected` beside it where there is one).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.archive import fetch, unpack
from data_prep.lists import all_of, command, finished, write_lists
from speechssl.audio.io import read, write
from speechssl.errors import DataError
from speechssl.rng import generator
from speechssl.types import Utterance

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
PUBLISHED = 3000  # recordings: 6 speakers, 10 digits, 50 each
HELD_INDICES = 5  # recordings 0-4 are the corpus' own test set; the rest is for training
PASSES = 2  # how often every recording is used in joined sentences
_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)")
_NOISE = 0.001  # -60 dBFS, below most recordings' own floor
_LEAST_SEC, _MOST_SEC = 2.0, 4.0


def download(dest: str | Path) -> Path:
    """Fetch and unpack the repository's archive below `dest`; returns the corpus folder.

    The archive has no fixed checksum: its own are tested, and `prepare` counts the recordings.
    Raises DataError when the network or the archive fails.
    """
    dest = Path(dest)
    name = "free-spoken-digit-dataset.tar.gz"
    if not (dest / f"{name}.completed").exists():
        unpack(fetch(URL, dest / name, None), dest)
    return dest / "free-spoken-digit-dataset-master"


def prepare(corpus_dir: str | Path, out_dir: str | Path) -> dict[str, Path]:
    """Write digit and sentence manifests, and the joined sentences below `out_dir/audio`.

    digits (all clips, `digit` in the extras); loso_SPEAKER_{train,test} (one speaker held out);
    connected_pretrain and pretrain_without_SPEAKER (joined recordings, no text);
    connected_{train,dev,test} with text: from the corpus `connected` where it lies beside, else
    joined here, the first speaker being the test and recordings 0-4 of the others dev.
    Raises DataError when recordings are missing or damaged.
    """
    corpus, out = Path(corpus_dir), Path(out_dir)
    root = _root(corpus)
    mark = root / "manifest.jsonl" if (root / "manifest.jsonl").exists() else root
    if (done := finished(out, "fsdd", mark)) is not None:
        return done
    digits = _jsonl(root) if mark.is_file() else _original(root)
    speakers = sorted({u.speaker or "" for u in digits})
    lists: dict[str, Sequence[Utterance]] = {"digits": digits}
    for speaker in speakers:
        lists[f"loso_{speaker}_train"] = [u for u in digits if u.speaker != speaker]
        lists[f"loso_{speaker}_test"] = [u for u in digits if u.speaker == speaker]
    train = [u for s in speakers for u in _sentences(digits, s, "train", out / "audio")]
    held = [u for s in speakers for u in _sentences(digits, s, "held", out / "audio")]
    lists["connected_pretrain"] = [replace(u, text=None) for u in train]
    for speaker in speakers:
        lists[f"pretrain_without_{speaker}"] = [
            replace(u, text=None) for u in train if u.speaker != speaker
        ]
    beside = root.parent / "connected"
    if (beside / "manifest.jsonl").is_file():
        for u in all_of(beside):
            name = f"connected_{u.extra.get('split')}"
            mine = replace(u, speaker=(u.speaker or "").removeprefix("fsdd-"))
            lists[name] = [*lists.get(name, []), mine]
    else:
        lists["connected_train"] = [u for u in train if u.speaker != speakers[0]]
        lists["connected_dev"] = [u for u in held if u.speaker != speakers[0]]
        lists["connected_test"] = [u for u in train + held if u.speaker == speakers[0]]
    return write_lists(out, "fsdd", mark, lists)


def _root(corpus: Path) -> Path:
    for root in (corpus, corpus / "fsdd", corpus / "free-spoken-digit-dataset-master"):
        if (root / "manifest.jsonl").is_file() or (root / "recordings").is_dir():
            return root
    raise DataError(
        f"{corpus}: expected recordings/DIGIT_SPEAKER_INDEX.wav or fsdd/manifest.jsonl; fetch the "
        "corpus with 'python -m data_prep.fsdd download DEST'"
    )


def _jsonl(root: Path) -> list[Utterance]:
    index = {word: digit for digit, word in enumerate(WORDS)}
    labelled = []
    for u in all_of(root):
        if u.text not in index or not u.speaker:
            raise DataError(f"{root}: id '{u.id}' has text {u.text!r}, expected one of {WORDS}")
        number = int(u.id.rpartition("-")[2])
        labelled.append(
            replace(
                u,
                speaker=u.speaker.removeprefix("fsdd-"),
                extra={**u.extra, "digit": index[u.text], "index": number},
            )
        )
    return labelled


def _original(root: Path) -> list[Utterance]:
    labelled = []
    for u in all_of(root / "recordings"):
        parts = _NAME.fullmatch(u.id)
        if parts is None:
            raise DataError(f"{u.audio}: expected a name like 7_jackson_32.wav")
        digit = int(parts["digit"])
        extra = {"digit": digit, "index": int(parts["index"])}
        labelled.append(replace(u, text=WORDS[digit], speaker=parts["speaker"], extra=extra))
    if len(labelled) < PUBLISHED:
        raise DataError(
            f"{root}: {len(labelled)} recordings, published are {PUBLISHED}; unpack it again"
        )
    return labelled


def _sentences(
    digits: Sequence[Utterance], speaker: str, pool: str, audio: Path
) -> list[Utterance]:
    """Join 3 to 7 recordings of one speaker and pool, all used `PASSES` times; writes the audio."""
    clips = [
        u
        for u in digits
        if u.speaker == speaker and (u.extra["index"] < HELD_INDICES) == (pool == "held")
    ]
    waves = {u.id: read(u.audio, u.start, u.num_samples, rate_hz=None) for u in clips}
    made = []
    for turn in range(PASSES):
        rng = generator("fsdd", "join", speaker, pool, turn)
        queue = [clips[i] for i in rng.permutation(len(clips))]
        while len(queue) >= 3:
            taken, rate_hz, wave, words = _join(queue, waves, rng)
            id_ = f"fsdd-{speaker}-{pool}-{turn}-{len(made):03d}"
            path = audio / speaker / f"{id_}.flac"
            write(path, wave, rate_hz)
            made.append(
                Utterance(
                    id=id_,
                    audio=str(path),
                    num_samples=len(wave),
                    rate_hz=rate_hz,
                    text=" ".join(str(u.text) for u in taken),
                    speaker=speaker,
                    extra={"words": words, "parts": [u.id for u in taken]},
                )
            )
    return made


def _join(
    queue: list[Utterance], waves: dict[str, np.ndarray], rng: np.random.Generator
) -> tuple[list[Utterance], int, np.ndarray, list[list[str | float]]]:
    """Take recordings off `queue` until 2 to 4 s are full, with gaps of 50 to 200 ms."""
    rate_hz = queue[0].rate_hz
    wanted_sec = rng.uniform(_LEAST_SEC, _MOST_SEC)
    taken: list[Utterance] = []
    pieces: list[np.ndarray] = []
    words: list[list[str | float]] = []
    length = 0
    while queue and len(taken) < 7:
        gap = np.zeros(int(rng.integers(rate_hz // 20, rate_hz // 5)), np.float32)
        clip = waves[queue[0].id]
        end = length + len(gap) + len(clip)
        full = end > wanted_sec * rate_hz or end > (_MOST_SEC - 0.2) * rate_hz
        if full and len(taken) >= 3:
            break
        taken.append(queue.pop(0))
        pieces += [gap, clip]
        begin_sec, end_sec = (length + len(gap)) / rate_hz, end / rate_hz
        words.append([str(taken[-1].text), round(begin_sec, 4), round(end_sec, 4)])
        length = end
    pieces.append(np.zeros(int(rng.integers(rate_hz // 20, rate_hz // 5)), np.float32))
    wave = np.concatenate(pieces)
    wave = wave + _NOISE * rng.standard_normal(len(wave)).astype(np.float32)
    return taken, rate_hz, np.clip(wave, -1, 1), words


if __name__ == "__main__":
    sys.exit(command("fsdd", __doc__ or "", download, prepare))
