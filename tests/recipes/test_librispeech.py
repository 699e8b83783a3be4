"""data_prep.librispeech on a tiny tree in the corpus' own layout."""

import hashlib
import io
import logging
import tarfile

import numpy as np
import pytest
import soundfile

from data_prep import archive, librispeech
from speechssl.data.manifest import read_manifest
from speechssl.errors import DataError

RATE_HZ = 16000


def write_chapter(folder, speaker, chapter, texts, seconds=0.5):
    place = folder / speaker / chapter
    place.mkdir(parents=True)
    lines = []
    for index, text in enumerate(texts):
        name = f"{speaker}-{chapter}-{index:04d}"
        wave = np.random.default_rng(index).normal(0, 0.1, int(seconds * RATE_HZ))
        soundfile.write(place / f"{name}.flac", wave, RATE_HZ)
        lines.append(f"{name} {text}\n")
    (place / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return place


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    write_chapter(root / "LibriSpeech/train-clean-100", "103", "1240", ["CHAPTER ONE", "IT IS"])
    write_chapter(root / "LibriSpeech/train-clean-100", "19", "198", ["NORTHANGER ABBEY"])
    write_chapter(root / "LibriSpeech/dev-other", "116", "288001", ["O'ER THE SEA"])
    for index in range(6):
        write_chapter(
            root / f"librispeech_finetuning/1h/{index}/clean", str(200 + index), "1", ["ONE"]
        )
        write_chapter(
            root / f"librispeech_finetuning/1h/{index}/other", str(300 + index), "1", ["TWO"]
        )
    write_chapter(root / "librispeech_finetuning/9h/clean", "400", "1", ["THREE", "FOUR"])
    return root


def test_manifests_of_every_subset_found(corpus, tmp_path):
    made = librispeech.prepare(corpus, tmp_path / "out")
    assert sorted(made) == [
        "dev-other", "finetune-10h", "finetune-10min", "finetune-1h", "train-clean-100",
    ]  # fmt: skip
    utterances = read_manifest(made["train-clean-100"])
    assert [u.id for u in utterances] == ["103-1240-0000", "103-1240-0001", "19-198-0000"]
    assert [u.speaker for u in utterances] == ["103", "103", "19"]
    assert utterances[1].text == "IT IS"
    assert (utterances[0].num_samples, utterances[0].rate_hz) == (8000, RATE_HZ)
    assert read_manifest(made["dev-other"])[0].text == "O'ER THE SEA"


def test_finetuning_sets_nest(corpus, tmp_path):
    made = librispeech.prepare(corpus, tmp_path / "out")
    sets = {
        hours: {u.id for u in read_manifest(made[f"finetune-{hours}"])}
        for hours in ("10min", "1h", "10h")
    }
    assert sets["10min"] == {"200-1-0000", "300-1-0000"}
    assert sets["10min"] < sets["1h"] < sets["10h"]
    assert [len(sets[hours]) for hours in ("10min", "1h", "10h")] == [2, 12, 14]


def test_folder_of_subsets_itself_is_accepted(corpus, tmp_path):
    made = librispeech.prepare(corpus / "LibriSpeech", tmp_path / "out")
    assert sorted(made) == ["dev-other", "train-clean-100"]


def test_partial_corpus_is_reported_not_refused(corpus, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        librispeech.prepare(corpus, tmp_path / "out")
    assert "train-clean-100 is not complete: 3 utterances" in caplog.text


def test_complete_subset_with_wrong_hours_is_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(librispeech.PUBLISHED, "train-clean-100", (3, 100.6))
    with pytest.raises(DataError, match=r"train-clean-100: 3 utterances .* published are 100\.6 h"):
        librispeech.prepare(corpus, tmp_path / "out")


def test_audio_without_transcript_is_named(corpus, tmp_path):
    stray = corpus / "LibriSpeech/dev-other/116/288001/116-288001-0009.flac"
    soundfile.write(stray, np.zeros(8000), RATE_HZ)
    with pytest.raises(DataError, match=r"116-288001-0009\.flac: no transcript"):
        librispeech.prepare(corpus, tmp_path / "out")


def test_transcripts_without_audio_are_counted_and_refused_only_without_any(
    corpus, tmp_path, caplog
):
    (corpus / "LibriSpeech/train-clean-100/103/1240/103-1240-0001.flac").unlink()
    made = librispeech.prepare(corpus, tmp_path / "out")
    assert [u.id for u in read_manifest(made["train-clean-100"])] == [
        "103-1240-0000",
        "19-198-0000",
    ]
    assert "train-clean-100: 1 transcripts have no audio" in caplog.text
    assert "103-1240-0001.flac" in caplog.text
    (corpus / "LibriSpeech/dev-other/116/288001/116-288001-0000.flac").unlink()
    with pytest.raises(DataError, match="116-288001-0000"):
        librispeech.prepare(corpus, tmp_path / "out")


def test_a_complete_subset_is_read_once_and_a_partial_one_again(corpus, tmp_path, monkeypatch):
    hours = 3 * 0.5 / 3600
    monkeypatch.setitem(librispeech.PUBLISHED, "train-clean-100", (3, hours))
    first = librispeech.prepare(corpus, tmp_path / "out")
    before = {split: path.stat().st_mtime_ns for split, path in first.items()}
    again = librispeech.prepare(corpus, tmp_path / "out")
    same = {split for split, path in again.items() if path.stat().st_mtime_ns == before[split]}
    assert again == first
    assert same == {"train-clean-100"}


def test_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="expected LibriSpeech/SUBSET/SPEAKER/CHAPTER"):
        librispeech.prepare(tmp_path, tmp_path / "out")


def test_command_line_ends_with_the_data_exit_code(tmp_path):
    assert librispeech.main(["prepare", str(tmp_path), str(tmp_path / "out")]) == 3


def test_unknown_subset_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="train-clean-360"):
        librispeech.download(tmp_path, ["train-clean-10"])


def make_archive(file, members):
    with tarfile.open(file, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Answer(io.BytesIO):
    """What a server sends, from where it was asked."""

    status = 206

    @property
    def headers(self):
        return {"Content-Length": str(len(self.getvalue()))}


def test_download_resumes_checks_and_unpacks_once(tmp_path, monkeypatch):
    source = tmp_path / "source.tar.gz"
    digest = make_archive(source, [(tarfile.TarInfo("LibriSpeech/SPEAKERS.TXT"), b"103 | F\n")])
    asked = []

    def serve(request, timeout):
        start = int((request.get_header("Range") or "bytes=0-")[6:-1])
        asked.append(start)
        return Answer(source.read_bytes()[start:])

    monkeypatch.setattr(archive.urllib.request, "urlopen", serve)
    monkeypatch.setitem(librispeech._SHA256, "dev-clean", digest)
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest/dev-clean.tar.gz.part").write_bytes(source.read_bytes()[:40])
    librispeech.download(tmp_path / "dest", ["dev-clean"])
    librispeech.download(tmp_path / "dest", ["dev-clean"])
    assert asked == [40]
    assert (tmp_path / "dest/LibriSpeech/SPEAKERS.TXT").read_text() == "103 | F\n"


def test_wrong_checksum_removes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(archive.urllib.request, "urlopen", lambda *_, **__: Answer(b"junk"))
    with pytest.raises(DataError, match="expected 00"):
        archive.fetch("https://example.org/a.tar.gz", tmp_path / "a.tar.gz", "00")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["outside", "absolute", "link"])
def test_archive_members_that_leave_the_folder_are_refused(tmp_path, kind):
    member = tarfile.TarInfo({"outside": "../evil", "absolute": "/evil", "link": "evil"}[kind])
    if kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    make_archive(tmp_path / "a.tar.gz", [(member, b"")])
    with pytest.raises(DataError, match="evil"):
        archive.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out/a.tar.gz.completed").exists()
