"""The demo corpus: complete, reproducible, resumable, speakers kept apart."""

from pathlib import Path

import pytest

from data_prep import demo
from speechssl.audio.io import is_silent, read
from speechssl.data.manifest import read_manifest
from speechssl.errors import DataError
from speechssl.types import Utterance

pytest.importorskip("espeakng_loader")

SPEAKERS, UTTERANCES = 3, 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    numbers = ["--speakers", str(SPEAKERS), "--utterances", str(UTTERANCES)]
    assert demo.main([str(folder), *numbers]) == 0
    return folder


def speakers(utterances: list[Utterance]) -> set[str | None]:
    return {u.speaker for u in utterances}


def test_lists_divide_the_corpus(corpus: Path) -> None:
    lists = {split: read_manifest(path) for split, path in demo.prepare(corpus, corpus).items()}
    asr = [lists[f"asr_{split}"] for split in ("train", "dev", "test")]
    assert sum(map(len, asr)) == SPEAKERS * UTTERANCES
    assert not speakers(asr[0]) & speakers(asr[1])
    assert not (speakers(asr[0]) | speakers(asr[1])) & speakers(asr[2])
    assert {u.text for u in lists["pretrain"]} == {None}
    spk = [lists[f"spk_{split}"] for split in ("train", "dev", "test")]
    held = {u.id for u in [*spk[1], *spk[2]]}
    assert [u.id for u in lists["pretrain"]] == [u.id for u in asr[0] if u.id not in held]
    assert [len(part) for part in spk] == [SPEAKERS * 3, SPEAKERS, SPEAKERS]
    assert speakers(spk[0]) == speakers(spk[1]) == speakers(spk[2])
    assert len({u.id for part in spk for u in part}) == SPEAKERS * UTTERANCES


def test_audio_text_and_times_belong_together(corpus: Path) -> None:
    known = {word for slot in demo.SLOTS for word in slot}
    for u in read_manifest(corpus / "corpus.jsonl"):
        wave = read(u.audio)
        assert len(wave) == u.num_samples
        assert not is_silent(wave)
        assert abs(wave).max() <= 1
        words = u.extra["words"]
        assert [word for word, _, _ in words] == (u.text or "").split()
        assert set((u.text or "").split()) <= known
        times = [t for _, begin, end in words for t in (begin, end)]
        assert times == sorted(times)
        assert 0 < times[0] < times[-1] <= u.seconds


def test_the_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.jsonl"
    demo._in_new_process(tmp_path, part, 1, UTTERANCES, 1)
    for u in read_manifest(part):
        twin = corpus / Path(u.audio).relative_to(tmp_path)
        assert Path(u.audio).read_bytes() == twin.read_bytes()


def test_a_second_run_does_nothing_and_other_numbers_are_refused(corpus: Path) -> None:
    before = (corpus / "corpus.jsonl").stat().st_mtime_ns
    demo.download(corpus, speakers=SPEAKERS, utterances=UTTERANCES)
    assert (corpus / "corpus.jsonl").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="choose another folder"):
        demo.download(corpus, speakers=4, utterances=UTTERANCES)


def test_missing_audio_is_found(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes((corpus / "corpus.jsonl").read_bytes())
    with pytest.raises(DataError, match="15 of 15 files are missing"):
        demo.prepare(tmp_path, tmp_path)
    assert not (tmp_path / ".completed").exists()


def test_nonsense_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected 3 to"):
        demo.download(tmp_path, speakers=1)
    with pytest.raises(DataError, match="at least 4"):
        demo.download(tmp_path, utterances=2)
