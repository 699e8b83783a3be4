from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.audio import io
from speechssl.data.skips import Skips
from speechssl.errors import ConfigError, DataError
from speechssl.extract.extractor import Extractor
from speechssl.extract.store import open_features, write_features
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import Bundle
from speechssl.models.presets import preset
from speechssl.types import Utterance


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    torch.manual_seed(1)
    cfg = preset("tiny", conv_dims=(8,) * 7, dim=16, layers=2, heads=2, ffn=24, pos_kernel=8)
    return Extractor(Bundle(Backbone(cfg).eval(), None, {}, (), Path("memory")), batch_sec=1.0)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    found = []
    for i, samples in enumerate((8000, 3000, 12000, 500, 6000)):
        wave = 0.1 * np.random.default_rng(i).standard_normal(samples).astype(np.float32)
        io.write(tmp_path / f"{i}.wav", wave, 16000)
        found.append(Utterance(f"utt {i}/ü", str(tmp_path / f"{i}.wav"), samples, 16000))
    return found


def test_a_store_holds_what_the_extractor_gives(tmp_path: Path, utterances, extractor):
    out, skips = tmp_path / "out", Skips()
    written = write_features(out, utterances, extractor, skips, model="m", shard_sec=0.8)
    assert (written, skips.total) == (5, 0)
    store = open_features(out)
    assert list(store) == [u.id for u in utterances]
    assert store.metadata["num_shards"] > 1
    assert store.metadata["frame_rate_hz"] == 50
    for features in extractor(utterances):
        got = store[features.id]
        assert isinstance(got, np.memmap)
        np.testing.assert_allclose(got, features.values, atol=1e-5)
        np.testing.assert_allclose(store.times_sec(features.id), features.times_sec)


def test_shards_are_plain_npy_and_jsonl(tmp_path: Path, utterances, extractor):
    out = tmp_path / "out"
    write_features(out, utterances, extractor, Skips())
    values = np.load(out / "features_00000_00001.npy")
    assert values.dtype == np.float32
    lines = (out / "features_00000_00001.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert sum(row["frames"] for row in rows) == len(values)
    assert [row["id"] for row in rows] == [u.id for u in utterances]
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("layer", ["all", "mean", 1])
def test_other_layers(tmp_path: Path, utterances, extractor, layer):
    write_features(tmp_path / "out", utterances, extractor, Skips(), layer=layer)
    store = open_features(tmp_path / "out")
    expected = extractor(utterances, layer=layer)[2]
    assert store[expected.id].shape == expected.values.shape
    np.testing.assert_allclose(store[expected.id], expected.values, atol=1e-5)


def test_two_processes_and_a_stop_give_the_same_files(tmp_path: Path, utterances, extractor):
    one, two = tmp_path / "one", tmp_path / "two"
    write_features(one, utterances, extractor, Skips(), shard_sec=0.8)
    write_features(two, utterances, extractor, Skips(), shard_sec=0.8, rank=1, world=2)
    with pytest.raises(DataError, match="shards are finished; run the extraction again"):
        open_features(two)
    write_features(two, utterances, extractor, Skips(), shard_sec=0.8, rank=0, world=2)
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_finished_shards_are_not_written_again(tmp_path: Path, utterances, extractor):
    out = tmp_path / "out"
    write_features(out, utterances, extractor, Skips(), shard_sec=0.8)
    (out / "features_00001_00003.done").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.npy")}
    written = write_features(out, utterances, extractor, Skips(), shard_sec=0.8)
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*.npy")}
    assert 0 < written < 5
    assert [name for name in before if before[name] != after[name]] == ["features_00001_00003.npy"]


def test_bad_audio_is_counted_and_left_out(tmp_path: Path, utterances, extractor):
    Path(utterances[1].audio).unlink()
    Path(utterances[3].audio).write_bytes(b"")
    skips = Skips()
    assert write_features(tmp_path / "out", utterances, extractor, skips) == 3
    assert skips.total == 2
    assert set(skips.counts) == {"missing", "unreadable"}
    assert set(open_features(tmp_path / "out")) == {utterances[i].id for i in (0, 2, 4)}


def test_nothing_readable_leaves_an_empty_store(tmp_path: Path, utterances, extractor):
    Path(utterances[0].audio).unlink()
    write_features(tmp_path / "out", utterances[:1], extractor, Skips())
    assert len(open_features(tmp_path / "out")) == 0


def test_another_setting_needs_another_folder(tmp_path: Path, utterances, extractor):
    write_features(tmp_path / "out", utterances, extractor, Skips())
    with pytest.raises(ConfigError, match=r"layer is -1 there, 1 now"):
        write_features(tmp_path / "out", utterances, extractor, Skips(), layer=1)
    with pytest.raises(ConfigError, match=r"other settings \(utterances\)"):
        write_features(tmp_path / "out", utterances[::-1], extractor, Skips())


def test_the_same_path_with_other_weights_needs_another_folder(tmp_path: Path, utterances):
    cfg = preset("tiny", conv_dims=(8,) * 7, dim=16, layers=2, heads=2, ffn=24, pos_kernel=8)
    bundle = Bundle(Backbone(cfg).eval(), None, {}, (), Path("memory"))
    write_features(tmp_path / "out", utterances[:1], Extractor(bundle), Skips(), model="m")
    with torch.no_grad():
        next(bundle.backbone.parameters()).add_(1)
    with pytest.raises(ConfigError, match=r"weights_sha256"):
        write_features(tmp_path / "out", utterances[:1], Extractor(bundle), Skips(), model="m")


def test_a_folder_without_features(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot be used"):
        open_features(tmp_path)
