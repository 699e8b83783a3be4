"""k-means and the frames it is fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.audio import io
from speechssl.audio.features import mfcc39
from speechssl.errors import ConfigError, DataError
from speechssl.extract import kmeans
from speechssl.extract.extractor import Extractor
from speechssl.extract.frames import MfccFrames, ModelFrames, normed
from speechssl.extract.kmeans import KMeans, fit
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import Bundle
from speechssl.models.presets import preset
from speechssl.types import Utterance


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Eight utterances of three tones each, and one too short for a frame."""
    found = []
    for i in range(9):
        rng = np.random.default_rng(i)
        tones = [np.sin(2 * np.pi * hz * np.arange(4000) / 16000) for hz in (200, 1000, 3000)]
        wave = 0.1 * np.concatenate(tones) + 0.001 * rng.standard_normal(12000)
        wave = wave[: 300 if i == 8 else None].astype(np.float32)
        io.write(tmp_path / f"{i}.wav", wave, 16000)
        found.append(Utterance(f"u{i}", str(tmp_path / f"{i}.wav"), len(wave), 16000))
    return found


def raise_it(source, error):
    raise error


def test_each_row_goes_to_the_nearest_centre(monkeypatch):
    monkeypatch.setattr(kmeans, "_CHUNK", 7)
    rng = np.random.default_rng(0)
    x, centers = rng.normal(size=(40, 5)).astype(np.float32), rng.normal(size=(6, 5))
    found = KMeans(centers.astype(np.float32), {"features": "x"}, 0.0).assign(x)
    brute = [min(range(6), key=lambda k: float(((row - centers[k]) ** 2).sum())) for row in x]
    assert found.tolist() == brute
    with pytest.raises(DataError, match="centres of 5 dimensions"):
        KMeans(centers.astype(np.float32), {"features": "x"}, 0.0).assign(x[:, :4])


def test_three_tones_are_three_clusters(utterances):
    source, short = MfccFrames(), []
    found = fit(
        source, utterances, 3, max_frames=10_000, seed=1, on_error=lambda s, e: short.append(s.id)
    )
    assert short == ["u8"]
    for _, vectors in source.stream(utterances[:8], raise_it):
        labels = found.assign(vectors)
        runs = [labels[3:20], labels[29:45], labels[54:70]]  # away from where tones change
        assert [len(set(run.tolist())) for run in runs] == [1, 1, 1]
        assert len({int(run[0]) for run in runs}) == 3
    again = fit(source, utterances[:8], 3, max_frames=10_000, seed=1, on_error=raise_it)
    assert again.name.startswith("mfcc39-k3-")
    assert np.isfinite(found.inertia)


def test_the_sample_is_bounded_and_repeats(utterances):
    whole = kmeans.sample(utterances, 100.0, 10**9, seed=1)
    assert sorted(u.id for u in whole) == [u.id for u in utterances]
    assert [u.id for u in whole] != [u.id for u in utterances]
    some = kmeans.sample(utterances, 100.0, 150, seed=1)
    assert some == whole[: len(some)]
    assert len(some) in (2, 3, 4)
    with pytest.raises(DataError, match="frames for 500 clusters"):
        fit(MfccFrames(), utterances[:8], 500, max_frames=150, seed=1, on_error=raise_it)
    with pytest.raises(ConfigError, match="got 1 clusters"):
        fit(MfccFrames(), utterances[:8], 1, max_frames=150, seed=1, on_error=raise_it)


def test_clusters_are_saved_with_what_they_are_of(tmp_path, utterances):
    found = fit(MfccFrames("mean"), utterances[:8], 4, max_frames=500, seed=2, on_error=raise_it)
    found.save(tmp_path)
    loaded = KMeans.load(tmp_path)
    assert np.array_equal(loaded.centers, found.centers)
    assert loaded.about == {"features": "mfcc39", "norm": "mean", "seed": 2, "frames": 500}
    assert (loaded.name, loaded.inertia) == (found.name, found.inertia)
    (tmp_path / kmeans.FILE).write_bytes(b"0" * 100)
    with pytest.raises(DataError, match=r"kmeans\.safetensors.*speechssl cluster"):
        KMeans.load(tmp_path)


def test_norms_of_an_utterance():
    x = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    x[:, 3] = 7.0  # digital silence
    assert normed(x, "none") is x
    np.testing.assert_allclose(normed(x, "mean").mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normed(x, "mean").std(0), x.std(0), rtol=1e-4)
    np.testing.assert_allclose(normed(x, "utterance").std(0), [1, 1, 1, 0], atol=1e-5)


def test_frames_of_both_kinds(utterances):
    for index, vectors in MfccFrames().stream(utterances[:2], raise_it):
        wave = io.read(utterances[index].audio)
        np.testing.assert_array_equal(vectors, mfcc39(wave))
    torch.manual_seed(1)
    cfg = preset("tiny", conv_dims=(8,) * 7, dim=16, layers=2, heads=2, ffn=24, pos_kernel=8)
    extractor = Extractor(Bundle(Backbone(cfg).eval(), None, {}, (), Path("memory")))
    source = ModelFrames(extractor, -2)
    assert (source.frames_hz, source.first_sec) == (50.0, 0.0125)
    assert source.about["features"] == "layer1"
    wanted = extractor(utterances[:3], layer=1)
    for index, vectors in source.stream(utterances[:3], raise_it):
        np.testing.assert_allclose(vectors, wanted[index].values, atol=1e-5)
    with pytest.raises(ConfigError, match="layer: got 3, expected 0 to 2"):
        ModelFrames(extractor, 3)
