"""Foreign lists become utterances; bad files are counted, not fatal."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.audio.io import write
from speechssl.data.manifest import write_manifest
from speechssl.data.readers import gather
from speechssl.errors import DataError, ManifestError
from speechssl.types import Utterance

RATE_HZ = 16_000


def sound(path: Path, seconds: float = 1.0, level: float = 0.1) -> Path:
    noise = np.random.default_rng(len(path.name)).standard_normal(int(seconds * RATE_HZ))
    write(path, level * noise.astype(np.float32), RATE_HZ)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_folder(tmp_path: Path) -> None:
    for name in ("b/two words.flac", "a.wav", "a.flac", "b/c/d.OGG", ".hidden/x.wav", "._a.wav"):
        sound(tmp_path / name.replace(".OGG", ".ogg"))
    (tmp_path / "b/c/d.ogg").rename(tmp_path / "b/c/d.OGG")
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    utterances, skips = gather(tmp_path, jobs=2)
    assert skips.total == 0
    assert [u.id for u in utterances] == ["a", "a-wav", "b-c-d", "b-two_words"]
    assert {u.num_samples for u in utterances} == {RATE_HZ}
    assert {u.speaker for u in utterances} == {None}


def test_bad_files_are_counted(tmp_path: Path) -> None:
    for name in ("good", "short", "flac", "silent"):
        sound(tmp_path / f"{name}.{'flac' if name == 'flac' else 'wav'}", level=0.1)
    cut(tmp_path / "short.wav")
    cut(tmp_path / "flac.flac")
    sound(tmp_path / "silent.wav", level=0)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE_HZ)
    (tmp_path / "text.mp3").write_text("text")
    (tmp_path / "link.wav").symlink_to("nowhere.wav")
    bad = np.full(100, np.nan, np.float32)
    soundfile.write(tmp_path / "nan.wav", bad, RATE_HZ, subtype="FLOAT")
    utterances, skips = gather(tmp_path)
    assert skips.counts == {"truncated": 1, "empty": 1, "unreadable": 1, "missing": 1}
    assert [u.id for u in utterances] == ["flac", "good", "nan", "silent"]
    utterances, skips = gather(tmp_path, full_check=True, jobs=2)
    assert [u.id for u in utterances] == ["good"]
    assert skips.counts["silent"] == skips.counts["nonfinite"] == 1
    assert skips.counts["corrupt"] + skips.counts["truncated"] == 2
    with pytest.raises(DataError, match="7 of 8"):
        skips.check(len(utterances) + skips.total)


def kaldi_dir(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_scp", ".scp")).write_text(content, encoding="utf-8")
    return folder


def test_kaldi_directory(tmp_path: Path) -> None:
    sound(tmp_path / "WAVE/r1.wav", 2.0)
    folder = kaldi_dir(
        tmp_path / "train",
        wav_scp="r1\tWAVE/r1.wav\nr2 WAVE/none.wav\nr3 sph2pipe x.sph |\n",
        text="r1 HELLO  YOU\n\nr2 A\n",
        utt2spk="r1 ann\n  \nr2 bob\n",
        utt2dur="r1 2.00\n",
    )
    utterances, skips = gather(folder)
    assert skips.counts == {"missing": 1, "pipe": 1}
    assert utterances == [
        Utterance(
            "r1", str(tmp_path / "WAVE/r1.wav"), 32_000, RATE_HZ, text="HELLO YOU", speaker="ann"
        )
    ]


def test_kaldi_segments(tmp_path: Path) -> None:
    audio = sound(tmp_path / "r.wav", 2.0)
    folder = kaldi_dir(
        tmp_path / "data",
        wav_scp=f"r {audio}\n",
        segments="u1 r 0.5 1.25\nu2 r 1.0 -1\nu3 r 1.0 5.0\nu4 none 0 1\nu5 r x y\nu6 r 1.5 2.05\n",
        text="u1 A\n",
    )
    utterances, skips = gather(folder, "kaldi")
    assert [(u.id, u.start, u.num_samples, u.text) for u in utterances] == [
        ("u1", 8_000, 12_000, "A"),
        ("u2", 16_000, 16_000, None),
        ("u6", 24_000, 8_000, None),
    ]
    assert skips.counts == {"span": 1, "no_recording": 1, "bad_line": 1}


def test_utt2dur_that_disagrees(tmp_path: Path) -> None:
    audio = sound(tmp_path / "r.wav", 2.0)
    folder = kaldi_dir(tmp_path / "data", wav_scp=f"r {audio}\n", utt2dur="r 3.5\n")
    assert gather(folder)[1].counts == {"mismatch": 1}


def test_fairseq_tsv(tmp_path: Path) -> None:
    sound(tmp_path / "root/s/a.flac")
    sound(tmp_path / "root/s/b.flac")
    tsv = tmp_path / "train.tsv"
    tsv.write_text(f"{tmp_path / 'root'}\ns/a.flac\t16000\ns/b.flac\t15999\nbroken\n")
    (tmp_path / "train.ltr").write_text("H I | Y O U |\nB |\nC |\n")
    utterances, skips = gather(tsv)
    assert [(u.id, u.text, u.num_samples) for u in utterances] == [("s-a", "HI YOU", RATE_HZ)]
    assert skips.counts == {"mismatch": 1, "bad_line": 1}
    (tmp_path / "train.wrd").write_text("HI YOU\n")
    with pytest.raises(DataError, match=r"3 files but 1 lines in train\.wrd"):
        gather(tsv)


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_nemo_manifest(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", 2.0)
    source = jsonl(
        tmp_path / "nemo.json",
        {"audio_filepath": "a.wav", "duration": 2.0, "text": "hi", "lang": "en"},
        {"audio_filepath": "a.wav", "duration": 0.5, "offset": 1.0, "text": "you"},
        {"audio_filepath": "a.wav", "duration": 9.0},
        {"audio_filepath": "a.wav", "duration": 0.5, "offset": 0.0, "text": "first"},
        {"audio_filepath": 3},
    )
    utterances, skips = gather(source)
    assert [(u.id, u.start, u.num_samples, u.text) for u in utterances] == [
        ("a", 0, 32_000, "hi"),
        ("a-2", 16_000, 8_000, "you"),
        ("a-4", 0, 8_000, "first"),
    ]
    assert utterances[0].extra == {"lang": "en"}
    assert skips.counts == {"mismatch": 1, "bad_line": 1}


def test_plain_jsonl(tmp_path: Path) -> None:
    sound(tmp_path / "audio/a.ogg", 1.5)
    common = {"audio": "audio/a.ogg", "sample_rate": 16000, "speaker": None, "text": None}
    jsonl(
        tmp_path / "manifest.jsonl",
        {"id": "x", "duration": 1.51, "split": "dev", **common},
        {"id": "x", "duration": 1.5, **common},
        {"id": "y z", "duration": 1.5, **common},
        {"id": "long", "duration": 2.5, **common},
        {"audio": "audio/a.ogg"},
    )
    utterances, skips = gather(tmp_path)
    assert [(u.id, u.num_samples, dict(u.extra)) for u in utterances] == [
        ("x", 24_000, {"split": "dev"})
    ]
    assert skips.counts == {"duplicate_id": 1, "bad_id": 1, "mismatch": 1, "bad_line": 1}


def test_our_own_manifest_is_compared_with_the_audio(tmp_path: Path) -> None:
    audio = str(sound(tmp_path / "a.wav"))
    good = Utterance("a", audio, 8_000, RATE_HZ, 100, "HI")
    write_manifest(
        tmp_path / "m.jsonl",
        [good, Utterance("b", audio, 16_001, RATE_HZ), Utterance("c", audio, 10, 8_000)],
    )
    utterances, skips = gather(tmp_path / "m.jsonl")
    assert utterances == [good]
    assert skips.counts == {"span": 1, "mismatch": 1}
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ManifestError, match="line 4: id is missing"):
        gather(tmp_path / "m.jsonl")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing found"):
        gather(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        gather(tmp_path / "none")
    with pytest.raises(DataError, match="is no nemo list"):
        gather(tmp_path, "nemo")


def test_progress_sees_every_file(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    seen: list[Any] = []

    def progress(iterable: Iterable[Any], total: int) -> Iterable[Any]:
        seen.append(total)
        return iterable

    wrapped: Callable[..., Iterable[Any]] = progress
    assert len(gather(tmp_path, progress=wrapped)[0]) == 1
    assert seen == [1]
