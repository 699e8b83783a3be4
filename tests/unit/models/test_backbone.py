"""Geometry, published sizes, and independence from padding of the backbone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.geometry import FrameGeometry
from speechssl.models.backbone import Backbone, build_backbone, normalize
from speechssl.models.context.transformer import Transformer
from speechssl.models.presets import PRESETS, BackboneConfig, preset
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.types import Frames

SMALL = {"conv_dims": (32,) * 7, "dim": 32, "layers": 2, "heads": 2, "ffn": 64, "pos_kernel": 16}


def small(**overrides) -> BackboneConfig:
    return preset("tiny", **{**SMALL, "pos_groups": 4, **overrides})


def count(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_published_parameter_counts():
    with torch.device("meta"):
        base = Wav2Vec2(Backbone(preset("base")), Wav2Vec2.Config())
        large = Backbone(preset("large"))
        xlsr = Backbone(preset("xlsr-300m"))
    assert count(base) == pytest.approx(95.04, abs=0.01)
    assert count(base.backbone) == pytest.approx(94.37, abs=0.01)
    assert count(large) == pytest.approx(315.4, abs=0.1)
    assert count(xlsr) == pytest.approx(315.4, abs=0.1)


def test_frame_arithmetic_of_the_seven_layers():
    geometry = FrameGeometry(BackboneConfig().conv_kernels, BackboneConfig().conv_strides)
    assert (geometry.hop, geometry.receptive) == (320, 400)
    known = {399: 0, 400: 1, 719: 1, 720: 2, 16000: 49, 190800: 596, 250000: 781, 320000: 999}
    for samples, frames in known.items():
        assert geometry.frames(samples) == frames
        assert geometry.frames(torch.tensor([samples])).tolist() == [frames]


def test_frame_i_sees_exactly_its_samples():
    backbone = Backbone(small()).double().eval()
    wave = torch.randn(1, 4000, dtype=torch.double, requires_grad=True)
    z = backbone.feature_extractor(wave, torch.tensor([4000]))
    (grad,) = torch.autograd.grad(z.x[0, 5].sum(), wave)
    seen = grad[0].nonzero().flatten()
    assert (int(seen[0]), int(seen[-1])) == (5 * 320, 5 * 320 + 399)


@pytest.mark.parametrize("conv_norm", ["group", "layer"])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("waveform_norm", [True, False])
def test_padding_and_neighbours_change_nothing(conv_norm: str, norm: str, waveform_norm: bool):
    torch.manual_seed(0)
    cfg = small(conv_norm=conv_norm, norm=norm, normalize=waveform_norm)
    backbone = Backbone(cfg).eval()
    clip = torch.randn(1, 16000)
    alone = backbone(clip, torch.tensor([16000]), layers=True)
    for padded_length in (16100, 24000, 80000):
        batch = torch.randn(3, padded_length)
        batch[1] = 0.0
        batch[1, :16000] = clip
        lens = torch.tensor([padded_length, 16000, padded_length // 2])
        together = backbone(batch, lens, layers=True)
        assert together.lens[1] == 49
        for a, b in zip(alone.layers, together.layers, strict=True):
            torch.testing.assert_close(a[0], b[1, :49], atol=1e-5, rtol=1e-5)


def test_junk_in_the_padding_changes_nothing():
    torch.manual_seed(0)
    backbone = Backbone(small(conv_norm="group")).eval()
    wave = torch.zeros(1, 20000)
    wave[0, :16000] = torch.randn(16000)
    junk = wave.clone()
    junk[0, 16000:] = 5.0
    lens = torch.tensor([16000])
    torch.testing.assert_close(
        backbone(wave, lens).x[:, :49], backbone(junk, lens).x[:, :49], atol=1e-5, rtol=1e-5
    )


def test_group_norm_mode_ignores_gain_and_offset():
    backbone = Backbone(small(conv_norm="group", normalize=False)).double().eval()
    wave, lens = torch.randn(1, 16000, dtype=torch.double), torch.tensor([16000])
    torch.testing.assert_close(
        backbone(wave, lens).x, backbone(7 * wave + 0.3, lens).x, atol=1e-4, rtol=1e-3
    )


def test_normalize_uses_valid_samples_only():
    wave = torch.zeros(2, 1000)
    wave[0, :600] = torch.randn(600) * 3 + 1
    out = normalize(wave, torch.tensor([600, 0]))
    assert out[0, :600].mean().abs() < 1e-5
    assert out[0, :600].std(unbiased=False) == pytest.approx(1.0, abs=1e-4)
    assert out[0, 600:].abs().max() == 0
    assert torch.isfinite(out).all()


def test_states_are_numbered_as_superb_does():
    backbone = Backbone(small(norm="pre")).eval()
    out = backbone(torch.randn(1, 8000), torch.tensor([8000]), layers=True)
    assert len(out.layers) == backbone.num_layers + 1
    torch.testing.assert_close(out.layers[-1], out.x)
    block = backbone.encoder.layers[0]
    torch.testing.assert_close(block(out.layers[0], None), out.layers[1])


def test_layerdrop_depends_on_seed_and_step_only():
    backbone = Backbone(small(layers=8, layerdrop=0.5))
    backbone.begin_step(1, 7)
    first = backbone.encoder.dropped
    torch.manual_seed(123)
    backbone.begin_step(1, 7)
    assert backbone.encoder.dropped == first
    drawn = set()
    for step in range(20):
        backbone.begin_step(1, step)
        drawn.add(backbone.encoder.dropped)
    assert len(drawn) > 5
    rate = 0
    for step in range(400):
        backbone.begin_step(2, step)
        rate += len(backbone.encoder.dropped)
    assert rate / 3200 == pytest.approx(0.5, abs=0.04)


def test_layerdrop_skips_the_block_in_training_only():
    backbone = Backbone(small(layerdrop=1.0, dropout=0.0))
    backbone.begin_step(1, 0)
    z = Frames(torch.randn(1, 9, 32), torch.tensor([9]))
    out = backbone.train().encoder(z, layers=True)
    assert torch.equal(out.layers[0], out.layers[1])
    out = backbone.eval().encoder(z, layers=True)
    assert not torch.equal(out.layers[0], out.layers[1])


def test_feature_gradient_is_scaled():
    wave, lens = torch.randn(2, 4000), torch.tensor([4000, 4000])
    norms = {}
    for scale in (1.0, 0.1, 0.0):
        torch.manual_seed(0)
        backbone = Backbone(small(feature_grad_mult=scale, dropout=0.0)).eval()
        backbone(wave, lens).x.square().sum().backward()
        grad = backbone.feature_extractor.conv_layers[0].conv.weight.grad
        norms[scale] = None if grad is None else float(grad.norm())
    assert norms[0.1] == pytest.approx(0.1 * norms[1.0], rel=1e-4)
    assert norms[0.0] is None


def test_masks_replace_frames_and_channels():
    backbone = Backbone(small(input_dropout=0.0)).eval()
    z = backbone.encode(torch.randn(1, 8000), torch.tensor([8000]))
    everything = torch.ones(1, z.x.shape[1], dtype=torch.bool)
    other = Frames(torch.randn_like(z.x), z.lens)
    torch.testing.assert_close(
        backbone.context(z, everything).x, backbone.context(other, everything).x
    )
    channels = torch.zeros(1, 32, dtype=torch.bool)
    channels[0, 3] = True
    assert not torch.equal(backbone.context(z).x, backbone.context(z, channel_mask=channels).x)


def test_too_short_batch_is_a_clear_error():
    with pytest.raises(ValueError, match="expected at least 400 samples"):
        Backbone(small()).encode(torch.zeros(1, 399), torch.tensor([399]))


def test_every_preset_is_consistent_and_unknown_names_are_refused():
    for name in PRESETS:
        assert preset(name).preset == name
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        preset("smal")
    with pytest.raises(ConfigError, match="multiple of heads"):
        replace(preset("tiny"), heads=7)


@pytest.mark.parametrize("name", ["tiny", "wav2vec-tiny", "logmel"])
def test_small_presets_run(name: str):
    backbone = build_backbone(preset(name)).eval()
    out = backbone(torch.randn(1, 8000), torch.tensor([8000]), layers=True)
    assert out.x.shape == (1, backbone.geometry.frames(8000), backbone.dim)
    assert len(out.layers) == backbone.num_layers + 1


@torch.no_grad()
def test_what_is_projected_is_the_context_networks_input_without_dropout():
    backbone = Backbone(small(input_dropout=0.5)).train()
    z = backbone.encode(torch.randn(2, 6000), torch.tensor([6000, 4000]))
    projected = backbone.project(z)
    assert torch.equal(projected.x, backbone.project(z).x)
    assert not torch.equal(backbone.context(z).x, backbone.context(z).x)
    backbone.eval()
    assert torch.equal(backbone.encoder(projected).x, backbone.context(z).x)
    with pytest.raises(ValueError, match="no projection"):
        Backbone(preset("wav2vec-tiny")).project(z)


@pytest.mark.parametrize("norm", ["post", "pre"])
@torch.no_grad()
def test_what_feed_forwards_put_out_is_what_their_blocks_add(norm: str):
    encoder = Backbone(small(layers=3, norm=norm)).eval().encoder
    assert isinstance(encoder, Transformer)
    z = Frames(torch.randn(2, 20, 32), torch.tensor([20, 13]))
    states = encoder(z, layers=True)
    found = encoder.feed_forwards(z, 2)
    assert len(found) == 2
    for index, got in zip((1, 2), found, strict=True):
        block: Any = encoder.layers[index]
        x, attend = states.layers[index], ~z.pad[:, None, None, :]
        if norm == "pre":
            x = x + block.attention(block.layer_norm(x), attend, None)
            wanted = block.feed_forward(block.final_layer_norm(x))
        else:
            wanted = block.feed_forward(block.layer_norm(x + block.attention(x, attend, None)))
        torch.testing.assert_close(got, wanted)
    assert encoder.feed_forwards(z, 0) == []
    # Nothing stays behind, even after an error.
    with pytest.raises(RuntimeError, match="size"):
        encoder.feed_forwards(Frames(torch.randn(2, 20, 31), z.lens), 3)
    assert not any(module._forward_hooks for module in encoder.modules())
