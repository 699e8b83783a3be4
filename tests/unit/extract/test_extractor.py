from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import speechssl
from speechssl.audio import io
from speechssl.errors import AudioError, ConfigError
from speechssl.extract.extractor import Extractor
from speechssl.extract.sources import padded_batches, sources
from speechssl.geometry import FrameGeometry
from speechssl.models.backbone import Backbone, build_backbone
from speechssl.models.bundle import Bundle, save_bundle
from speechssl.models.presets import preset
from speechssl.types import Utterance


def backbone(conv_norm: str = "layer", norm: str = "pre") -> Backbone:
    torch.manual_seed(1)
    return build_backbone(
        preset(
            "tiny",
            conv_dims=(8,) * 7, dim=16, layers=2, heads=2, ffn=24, pos_kernel=8, pos_groups=2,
            conv_norm=conv_norm, norm=norm, normalize=conv_norm == "layer",
        )
    )  # fmt: skip


def bundle(model: Backbone) -> Bundle:
    return Bundle(model.eval(), None, {}, (), Path("memory"))


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


LENGTHS = (16000, 401, 5000, 12345, 400, 8000)


@pytest.mark.parametrize(("conv_norm", "norm"), [("layer", "pre"), ("group", "post")])
def test_results_do_not_depend_on_the_batching(conv_norm: str, norm: str):
    model = backbone(conv_norm, norm)
    waves = [noise(n, seed=n) for n in LENGTHS]
    together = Extractor(bundle(model))(waves, rate_hz=16000, layer="all")
    alone = Extractor(bundle(model), batch_sec=0.01)(waves, rate_hz=16000, layer="all")
    for i, (a, b) in enumerate(zip(together, alone, strict=True)):
        assert a.id == b.id == str(i)
        frames = model.geometry.frames(LENGTHS[i])
        assert a.values.shape == (3, frames, 16)
        assert a.values.dtype == np.float32
        np.testing.assert_allclose(a.values, b.values, atol=1e-5)


def test_layers_are_the_backbones_states():
    model = backbone()
    extract = Extractor(bundle(model))
    wave = noise(4000)
    with torch.no_grad():
        frames = model(torch.from_numpy(wave)[None], torch.tensor([4000]), layers=True)
    states = [s[0].numpy() for s in frames.layers]
    for layer, expected in [(0, states[0]), (1, states[1]), (2, states[2]), (-1, states[2]),
                            (-3, states[0]), ("all", np.stack(states)),
                            ("mean", np.mean(states, axis=0))]:  # fmt: skip
        got = extract([wave], rate_hz=16000, layer=layer)[0].values
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("layer", [3, -4, "last", True, 1.0])
def test_a_layer_that_is_not_there(layer):
    with pytest.raises(ConfigError, match=r"expected 0 to 2 .*'all' or 'mean'"):
        Extractor(bundle(backbone()))([noise(800)], rate_hz=16000, layer=layer)


def test_times_are_centres_of_receptive_fields():
    features = Extractor(bundle(backbone()))([noise(16000)], rate_hz=16000)[0]
    assert len(features.times_sec) == len(features.values) == 49
    assert features.hop_sec == 0.02
    assert features.receptive_sec == 0.025
    assert features.times_sec[0] == pytest.approx(0.0125)
    np.testing.assert_allclose(np.diff(features.times_sec), 0.02)


def test_paths_arrays_tensors_and_utterances_agree(tmp_path: Path):
    wave = noise(8000)
    io.write(tmp_path / "a.flac", wave, 16000)
    wave = io.read(tmp_path / "a.flac")  # as rounded to 16 bit
    span = Utterance("u1", str(tmp_path / "a.flac"), 4000, 16000, start=1000)
    extract = Extractor(bundle(backbone()))
    from_path, from_str, cut = extract([tmp_path / "a.flac", str(tmp_path / "a.flac"), span])
    whole, part, tensor, pcm = extract(
        [
            wave,
            wave[1000:5000].astype(np.float64),
            torch.from_numpy(wave),
            np.round(wave * 32768).astype(np.int16),
        ],
        rate_hz=16000,
    )
    for other in (from_str, whole, tensor, pcm):
        np.testing.assert_allclose(from_path.values, other.values, atol=1e-5)
    np.testing.assert_allclose(cut.values, part.values, atol=1e-5)
    assert (from_path.id, cut.id) == (str(tmp_path / "a.flac"), "u1")


@pytest.mark.parametrize("rate_hz", [8000, 11025, 44100, 48000])
def test_arrays_of_any_rate_are_resampled(rate_hz: int):
    features = Extractor(bundle(backbone()))([noise(rate_hz)], rate_hz=rate_hz)[0]
    assert features.values.shape == (49, 16)


@pytest.mark.parametrize("samples", [1, 160, 399, 400, 719, 720])
def test_short_audio_gives_at_least_one_frame(samples: int):
    features = Extractor(bundle(backbone()))([noise(samples)], rate_hz=16000)[0]
    assert len(features.values) == (2 if samples == 720 else 1)
    assert np.isfinite(features.values).all()


def test_silence_is_finite():
    features = Extractor(bundle(backbone()))([np.zeros(1000, np.float32)], rate_hz=16000)[0]
    assert np.isfinite(features.values).all()


@pytest.mark.parametrize(
    ("wave", "kind"),
    [
        (noise(1000).reshape(2, 500), "channels"),
        (np.zeros(0, np.float32), "empty"),
        (np.array([0.0, np.nan, 1.0], np.float32), "nonfinite"),
        (np.zeros(500, np.int64), "dtype"),
    ],
)
def test_unusable_arrays_are_refused(wave: np.ndarray, kind: str):
    with pytest.raises(AudioError, match=r"audio\[1\]") as caught:
        Extractor(bundle(backbone()))([noise(800), wave], rate_hz=16000)
    assert caught.value.kind == kind


def test_unusable_files_are_refused(tmp_path: Path):
    (tmp_path / "text.wav").write_text("not sound")
    extract = Extractor(bundle(backbone()))
    with pytest.raises(AudioError, match=r"text\.wav"):
        extract([tmp_path / "text.wav"])
    with pytest.raises(AudioError, match=r"gone\.wav"):
        extract([tmp_path / "gone.wav"])


def test_wrong_calls_say_what_to_do(tmp_path: Path):
    extract = Extractor(bundle(backbone()))
    with pytest.raises(ConfigError, match="give rate_hz="):
        extract([noise(800)])
    with pytest.raises(ConfigError, match="files know their own rate"):
        extract(["a.wav"], rate_hz=16000)
    with pytest.raises(ConfigError, match=r"write \[audio\]"):
        extract("a.wav")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"audio\[0\]: got int"):
        extract([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="'fp16'"):
        Extractor(bundle(backbone()), precision="fp16")  # type: ignore[arg-type]
    assert extract([]) == []


def test_batches_stay_within_their_seconds():
    geometry = FrameGeometry((400,), (320,))
    found = sources([noise(n) for n in (100, 16000, 300, 9000, 40000, 15999)], 16000, 16000)
    seen = []
    for batch in padded_batches(found, geometry, 2.0):
        assert batch.wave.shape[1] == int(batch.lens.max()) >= 400
        assert batch.wave.numel() <= 2 * 16000 or len(batch.indices) == 1
        seen += batch.indices
    assert sorted(seen) == list(range(6))


def test_bf16_is_close_to_fp32():
    model, wave = backbone(), noise(4000)
    exact = Extractor(bundle(model))([wave], rate_hz=16000)[0].values
    fast = Extractor(bundle(model), precision="bf16")([wave], rate_hz=16000)[0].values
    assert fast.dtype == np.float32
    assert 0 < np.abs(exact - fast).max() < 0.2


@pytest.mark.parametrize("name", ["wav2vec-tiny", "logmel"])
def test_other_backbones_and_folders(tmp_path: Path, name: str):
    model = build_backbone(preset(name))
    save_bundle(tmp_path / "model", model, card={})
    features = speechssl.Extractor(tmp_path / "model")([noise(16000)], rate_hz=16000, layer="all")
    assert features[0].values.shape[0] == model.num_layers + 1
    assert features[0].values.shape[2] == model.dim


def test_the_package_is_lazy():
    import subprocess
    import sys

    code = (
        "import sys, speechssl; assert speechssl.__version__; "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; "
        "assert {'load', 'Extractor', 'transcribe'} <= set(dir(speechssl)); "
        "from speechssl import Extractor; "
        "bad = {'deepspeed', 'transformers', 'librosa', 'torchaudio'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="'lod'"):
        _ = speechssl.lod  # type: ignore[attr-defined]
