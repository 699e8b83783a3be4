"""Spoken digits on a tiny tree, in both layouts: lists, joined sentences, no leaks."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep import fsdd
from speechssl.audio.io import read, write
from speechssl.data.manifest import read_manifest
from speechssl.errors import DataError
from speechssl.types import Utterance

NAMES = ("ann", "bob", "cy")
INDICES = 7


def sound(path: Path, rate_hz: int) -> None:
    rng = np.random.default_rng(len(str(path)))
    write(path, (0.1 * rng.standard_normal(rate_hz // 2)).astype(np.float32), rate_hz)


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        for digit in range(10):
            for index in range(INDICES):
                sound(tmp_path / f"corpus/recordings/{digit}_{name}_{index}.wav", 8_000)
    monkeypatch.setattr(fsdd, "PUBLISHED", len(NAMES) * 10 * INDICES)
    return tmp_path / "corpus"


def loaded(paths: dict[str, Path]) -> dict[str, list[Utterance]]:
    return {split: read_manifest(path) for split, path in paths.items()}


def test_original_layout(original: Path, tmp_path: Path) -> None:
    lists = loaded(fsdd.prepare(original, tmp_path / "out"))
    assert len(lists["digits"]) == 210
    assert {(u.extra["digit"], u.text) for u in lists["digits"]} == set(enumerate(fsdd.WORDS))
    assert {u.speaker for u in lists["loso_ann_test"]} == {"ann"}
    assert {u.speaker for u in lists["loso_ann_train"]} == {"bob", "cy"}
    assert {u.speaker for u in lists["pretrain_without_ann"]} == {"bob", "cy"}
    assert {u.speaker for u in lists["connected_pretrain"]} == set(NAMES)
    assert {u.text for u in lists["connected_pretrain"]} == {None}
    for split, held in (("pretrain", False), ("train", False), ("dev", True)):
        parts = {p for u in lists[f"connected_{split}"] for p in u.extra["parts"]}
        assert {int(p.rpartition("_")[2]) < fsdd.HELD_INDICES for p in parts} == {held}
    assert {u.speaker for u in lists["connected_test"]} == {"ann"}
    assert "ann" not in {u.speaker for u in lists["connected_train"] + lists["connected_dev"]}


def test_joined_sentences(original: Path, tmp_path: Path) -> None:
    lists = loaded(fsdd.prepare(original, tmp_path / "out"))
    digits = {u.id: u for u in lists["digits"]}
    for u in lists["connected_train"]:
        assert 3 <= len((u.text or "").split()) <= 7
        assert u.text == " ".join(str(digits[p].text) for p in u.extra["parts"])
        assert 1.8 <= u.seconds <= 4.0
        wave = read(u.audio, rate_hz=None)
        assert wave.std() > 0
        last = 0.0
        for (word, begin, end), part in zip(u.extra["words"], u.extra["parts"], strict=True):
            assert word == digits[part].text
            assert 0.05 <= begin - last <= 0.201
            clip = read(digits[part].audio, rate_hz=None)
            start = round(begin * u.rate_hz)
            assert np.abs(wave[start : start + len(clip)] - clip).max() < 0.01
            last = end


def test_two_runs_are_equal(original: Path, tmp_path: Path) -> None:
    one = fsdd.prepare(original, tmp_path / "one")["connected_train"]
    two = fsdd.prepare(original, tmp_path / "two")["connected_train"]
    for a, b in zip(read_manifest(one), read_manifest(two), strict=True):
        assert Path(a.audio).read_bytes() == Path(b.audio).read_bytes()
        assert (a.id, a.text) == (b.id, b.text)


def jsonl_corpus(folder: Path, rows: list[dict]) -> None:
    for row in rows:
        sound(folder / row["audio"], 16_000)
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_json_lines_with_connected_beside(tmp_path: Path) -> None:
    rows = []
    for name in NAMES:
        for digit, word in enumerate(fsdd.WORDS):
            for index in range(INDICES):
                id_ = f"fsdd-{name}-{digit}-{index:02d}"
                row = {"id": id_, "audio": f"audio/{id_}.flac", "duration": 0.5, "text": word}
                rows.append(row | {"speaker": f"fsdd-{name}"})
    jsonl_corpus(tmp_path / "data/fsdd", rows)
    splits = ("train", "dev", "test", "test_seen")
    connected = [
        {"id": s, "audio": f"{s}.flac", "text": "ONE TWO", "speaker": "fsdd-ann", "split": s}
        for s in splits
    ]
    jsonl_corpus(tmp_path / "data/connected", connected)
    lists = loaded(fsdd.prepare(tmp_path / "data", tmp_path / "out"))
    assert [len(lists[f"connected_{split}"]) for split in splits] == [1, 1, 1, 1]
    assert {u.speaker for u in lists["digits"]} == set(NAMES)
    assert lists["connected_test"][0].speaker == "ann"
    assert {u.extra["index"] for u in lists["digits"]} == set(range(INDICES))


def test_missing_recordings(original: Path, tmp_path: Path) -> None:
    (original / "recordings" / "3_bob_2.wav").unlink()
    with pytest.raises(DataError, match="209 recordings, published are 210"):
        fsdd.prepare(original, tmp_path / "out")
    with pytest.raises(DataError, match="expected recordings/"):
        fsdd.prepare(tmp_path / "out", tmp_path / "out")
