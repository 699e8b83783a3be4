"""Backbones that only look backwards: exactly so, whatever they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.errors import CheckpointError, ConfigError
from speechssl.models.backbone import Backbone, build_backbone
from speechssl.models.bundle import load_bundle, save_bundle
from speechssl.models.presets import preset
from tests.unit.models.test_variants import CONFORMER, SMALL, VARIANTS

GRU: dict[str, Any] = {"preset": "gru-tiny", "conv_dims": (8,) * 7, "dim": 16, "dropout": 0.0}
CAUSAL = {name: SMALL | kind | {"causal": True} for name, kind in VARIANTS.items()} | {
    "plain": SMALL | {"causal": True},
    "post-norm, odd kernel": SMALL | {"causal": True, "norm": "post", "pos_kernel": 5},
    "gru": GRU,
    "gru on a filterbank": GRU
    | {
        "conv_dims": (8, 16, 16),
        "conv_kernels": (400, 2, 2),
        "conv_strides": (160, 2, 2),
        "conv_first": "filterbank",
    },
}
FRAME = 9


def built(name: str, **overrides: Any) -> Backbone:
    torch.manual_seed(1)
    settings = CAUSAL[name] | {"normalize": False} | overrides
    backbone = Backbone(preset(settings.pop("preset", "tiny"), **settings)).eval()
    with torch.no_grad():  # what starts at zero would let nothing through, of the future as well
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return backbone


def noise(samples: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_what_comes_after_a_frame_does_not_reach_it(name: str):
    backbone = built(name)
    assert backbone.causal
    wave, lens = noise(12000), torch.tensor([12000])
    seen = backbone.geometry.samples(FRAME + 1)
    other = wave.clone()
    other[:, seen:] = noise(12000 - seen, seed=3) * 5.0 + 1.0
    mine, theirs = (backbone(x, lens, layers=True) for x in (wave, other))
    assert len(mine.layers) == backbone.num_layers + 1
    for one, two in zip(mine.layers, theirs.layers, strict=True):
        assert torch.equal(one[:, : FRAME + 1], two[:, : FRAME + 1])
    assert not torch.allclose(mine.x[:, FRAME + 1], theirs.x[:, FRAME + 1])


@pytest.mark.parametrize("name", CAUSAL)
def test_a_frame_hears_its_last_sample_and_all_the_past(name: str):
    backbone = built(name)
    wave = noise(12000).requires_grad_()
    found = backbone(wave, torch.tensor([12000])).x[0, FRAME]
    (grad,) = torch.autograd.grad(found.square().sum(), wave)
    heard = grad[0].nonzero()[:, 0]
    first, last = int(heard.min()), int(heard.max())
    # A recurrence forgets, but not in ten frames; a window may be near zero at its ends.
    assert first < backbone.geometry.hop
    assert backbone.geometry.samples(FRAME + 1) - 2 <= last + 1 <= backbone.geometry.samples(10)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_padding_and_neighbours_change_no_frame(name: str):
    backbone = built(name)
    wave = torch.cat([noise(12000, seed) for seed in (1, 2, 3)])
    if backbone.cfg.conv_first == "conv":  # a filterbank is in single precision, always
        backbone, wave = backbone.double(), wave.double()
    lens = torch.tensor([12000, 6100, 300])
    alone = backbone(wave[1:2, :6100], lens[1:2], layers=True)
    wave[1, 6100:] = 0.0
    wave[2, 300:] = 0.0  # too short for a frame
    together = backbone(wave, lens, layers=True)
    assert together.x.isfinite().all()
    for one, two in zip(alone.layers, together.layers, strict=True):
        torch.testing.assert_close(two[1, : one.shape[1]], one[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["plain", "gru"])
@torch.no_grad()
def test_a_normalised_waveform_tells_its_mean_and_gain_and_nothing_else(name: str):
    backbone = built(name, normalize=True)
    wave, lens = noise(12000), torch.tensor([12000])
    seen = backbone.geometry.samples(FRAME + 1)
    same = wave.clone()
    same[:, seen:] = same[:, seen:].flip(1)  # another future of the same mean and power
    louder = wave.clone()
    louder[:, seen:] *= 2.0
    found = [backbone(x, lens).x[:, : FRAME + 1] for x in (wave, same, louder)]
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    assert not torch.allclose(found[2], found[0], atol=1e-3)


def test_what_is_not_causal_says_so():
    assert not built("plain", causal=False).causal
    assert not build_backbone(preset("wav2vec-tiny")).causal
    assert not build_backbone(preset("logmel")).causal


def test_layers_of_the_gru_stack_add_what_came_in():
    backbone = built("gru")
    states = backbone(noise(6000), torch.tensor([6000]), layers=True).layers
    first, second, _ = backbone.encoder.layers
    torch.testing.assert_close(first(states[0])[0], states[1])
    torch.testing.assert_close(second(states[1])[0] + states[1], states[2])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"causal": True, "conv_norm": "group"}, "causal true needs"),
        ({"causal": True, "conv_norm": "global"}, "conv_norm 'global'"),
        ({"preset": "gru-tiny", "conv_norm": "group"}, "context 'gru' needs"),
        ({"preset": "gru-tiny", "causal": True}, "no use for causal"),
        ({"preset": "gru-tiny", "heads": 2}, "no use for heads"),
        ({"preset": "wav2vec-tiny", "causal": True}, "no use for causal"),
        ({"preset": "logmel", "causal": True}, "no use for causal"),
    ],
)
def test_settings_that_see_the_future_or_do_nothing_are_refused(
    settings: dict[str, Any], told: str
):
    with pytest.raises(ConfigError, match=told):
        preset(settings.pop("preset", "tiny"), **settings)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("plain", "speechssl-wav2vec2-causal"),
        ("gru", "speechssl-gru"),
        ("conformer", "speechssl-wav2vec2-causal"),
    ],
)
def test_its_folder_is_no_model_of_another_toolkit(name: str, kind: str, tmp_path: Path):
    backbone = built(name)
    save_bundle(tmp_path / "m", backbone, card={})
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["model_type"] == kind
    assert config["architectures"] == []
    read = load_bundle(tmp_path / "m").backbone.eval()
    assert read.cfg == backbone.cfg
    wave, lens = noise(6000), torch.tensor([6000])
    assert torch.equal(read(wave, lens).x, backbone(wave, lens).x)
    for asked in ({"plain": True}, {"family": "wav2vec2"}):
        with pytest.raises(CheckpointError, match="no class|cannot be written"):
            save_bundle(tmp_path / "x", backbone, card={}, **asked)


def test_conformers_without_causal_are_as_before():
    torch.manual_seed(1)
    module = Backbone(preset("tiny", **SMALL | CONFORMER)).encoder.layers[0].conv_module
    assert module.depthwise_conv.padding == (2,)
