"""speechocean762 on a tiny tree in the corpus' own layout, and in JSON lines."""

import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_prep import so762
from speechssl.audio.io import write
from speechssl.data.manifest import read_manifest
from speechssl.errors import DataError
from speechssl.types import Utterance

CLIPS = 5
SPEAKERS = {"train": 4, "test": 4}


def sound(path: Path, seconds: float = 0.5) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16_000))
    write(path, noise.astype(np.float32), 16_000)


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "speechocean762"
    number = 0
    for split, num_speakers in SPEAKERS.items():
        lines: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
        for _ in range(num_speakers):
            number += 1
            speaker = f"{number:04d}"
            for clip in range(CLIPS):
                id_ = f"{speaker}{clip:05d}"
                name = f"WAVE/SPEAKER{speaker}/{id_}"
                sound(root / f"{name}.wav")
                (root / f"{name}.wav").rename(root / f"{name}.WAV")
                lines["wav.scp"].append(f"{id_}\t{name}.WAV")
                lines["text"].append(f"{id_}\tIT'S WELL-KNOWN")
                lines["utt2spk"].append(f"{id_}\t{speaker}")
        (root / split).mkdir(parents=True)
        for file, content in lines.items():
            (root / split / file).write_text("\n".join(content) + "\n")
    monkeypatch.setattr(so762, "PUBLISHED", {k: n * CLIPS for k, n in SPEAKERS.items()})
    monkeypatch.setattr(so762, "DEV_SPEAKERS", 1)
    monkeypatch.setattr(so762, "LABELLED_SEC", {"asr_train_10min": 2.2, "asr_train_1h": 6.0})
    return root


def loaded(paths: dict[str, Path]) -> dict[str, list[Utterance]]:
    return {split: read_manifest(path) for split, path in paths.items()}


def speakers(utterances: list[Utterance]) -> set[str | None]:
    return {u.speaker for u in utterances}


def test_original_layout(original: Path, tmp_path: Path) -> None:
    lists = loaded(so762.prepare(original.parent, tmp_path / "out"))
    counts = {split: len(found) for split, found in lists.items()}
    assert counts == {
        "pretrain": 12,
        "pretrain_valid": 3,
        "asr_train_10min": 4,
        "asr_train_1h": 12,
        "asr_train_all": 20,
        "asr_dev": 5,
        "asr_test": 15,
        "spk_train": 24,
        "spk_dev": 8,
        "spk_test": 8,
    }
    parts = [speakers(lists[f"asr_{split}"]) for split in ("train_all", "dev", "test")]
    assert [len(part) for part in parts] == [4, 1, 3]
    assert len(set.union(*parts)) == 8
    small, large = ({u.id for u in lists[f"asr_train_{n}"]} for n in ("10min", "1h"))
    assert small < large
    assert len(speakers(lists["asr_train_10min"])) == 4  # one clip each
    assert {u.text for u in lists["asr_dev"]} == {"IT'S WELL KNOWN"}
    assert {u.text for u in lists["pretrain"]} == {None}
    assert len(speakers(lists["spk_train"])) == len(speakers(lists["spk_test"])) == 8
    heard = {u.id for name in ("pretrain", "pretrain_valid") for u in lists[name]}
    assert not heard & {u.id for name in ("spk_dev", "spk_test") for u in lists[name]}


def test_prepared_once(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = so762.prepare(original, tmp_path / "out")
    before = {split: path.stat().st_mtime_ns for split, path in paths.items()}
    again = so762.prepare(original, tmp_path / "out")
    assert {split: path.stat().st_mtime_ns for split, path in again.items()} == before
    again["asr_dev"].unlink()
    assert so762.prepare(original, tmp_path / "out")["asr_dev"].exists()
    monkeypatch.setattr("data_prep.lists.VERSION", 0)  # lists drawn in another way are no use
    again = so762.prepare(original, tmp_path / "out")
    assert again["pretrain"].stat().st_mtime_ns != before["pretrain"]


def test_incomplete_or_damaged_corpus(original: Path, tmp_path: Path) -> None:
    victim = sorted((original / "WAVE").rglob("*.WAV"))[0]
    content = victim.read_bytes()
    victim.write_bytes(content[:1000])
    with pytest.raises(DataError, match="truncated"):
        so762.prepare(original, tmp_path / "out")
    victim.write_bytes(content)
    scp = original / "train" / "wav.scp"
    scp.write_text("\n".join(scp.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(DataError, match="19 utterances, published are 20"):
        so762.prepare(original, tmp_path / "out")
    assert not (tmp_path / "out" / ".completed").exists()
    with pytest.raises(DataError, match=r"expected train/wav\.scp"):
        so762.prepare(tmp_path / "out", tmp_path / "out")


def jsonl_corpus(folder: Path, splits: list[str], text: str | None = "HI") -> None:
    rows = []
    for number, split in enumerate(splits):
        for clip in range(4):
            id_ = f"{folder.name}-{number}-{clip}"
            sound(folder / f"audio/{id_}.ogg")
            row = {"id": id_, "audio": f"audio/{id_}.ogg", "duration": 0.5, "sample_rate": 16000}
            rows.append(row | {"speaker": f"{folder.name}{number}", "text": text, "split": split})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_json_lines_with_further_speech(tmp_path: Path) -> None:
    data = tmp_path / "data"
    jsonl_corpus(data / "so762_full", ["train", "train", "dev", "test", "test_more"])
    jsonl_corpus(data / "s2i", ["train", "dev"], None)
    lists = loaded(so762.prepare(data, tmp_path / "out"))
    assert len(lists["pretrain"]) == 2 * 2 + 4  # two clips of each speaker test who speaks
    assert {str(u.extra["split"]) for u in lists["pretrain"]} == {"train"}
    assert len(lists["asr_test"]) == 4
    assert len(speakers(lists["spk_train"])) == 5
    assert "asr_train_1h" not in lists


def test_strange_transcript_is_refused(tmp_path: Path) -> None:
    jsonl_corpus(tmp_path / "so762", ["train", "dev", "test"], "ROOM 101")
    with pytest.raises(DataError, match="ROOM 101"):
        so762.prepare(tmp_path, tmp_path / "out")


def test_download_unpacks_an_archive(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "served" / "speechocean762.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(original, "speechocean762")
    monkeypatch.setattr(so762, "URL", archive.as_uri())
    root = so762.download(tmp_path / "dest")
    assert (root / "train" / "wav.scp").exists()
    archive.unlink()
    assert so762.download(tmp_path / "dest") == root  # nothing is fetched twice


def test_a_broken_archive_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "speechocean762.tar.gz").write_bytes(b"\x1f\x8b broken")
    monkeypatch.setattr(so762, "URL", (tmp_path / "speechocean762.tar.gz").as_uri())
    with pytest.raises(DataError, match="cannot unpack"):
        so762.download(tmp_path / "dest")
    assert not list((tmp_path / "dest").glob("*.completed"))


def test_a_connection_that_breaks_off_is_taken_up_again(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(original, "speechocean762")
    content = archive.read_bytes()
    asked: list[str | None] = []

    class Flaky(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            first = int((asked[-1] or "bytes=0-")[6:-1])
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first:] if first else content[:1000])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/speechocean762.tar.gz"
        monkeypatch.setattr(so762, "URL", url)
        with pytest.raises(DataError, match=f"got 1000 bytes, expected {len(content)}"):
            so762.download(tmp_path / "dest")
        assert (so762.download(tmp_path / "dest") / "train" / "text").exists()
        server.shutdown()
    assert asked == [None, "bytes=1000-"]
