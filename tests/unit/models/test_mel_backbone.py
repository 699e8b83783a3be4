"""The log-mel baseline behind the interface of a backbone."""

import numpy as np
import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone, build_backbone
from speechssl.models.features.mel import LogMel
from speechssl.models.presets import preset


def noise(samples, seed=0):
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


def test_log_mel_equals_kaldi():
    from torchaudio.compliance.kaldi import fbank

    wave = noise(8000)
    ours = LogMel(80)(wave)[0]
    theirs = fbank(wave * 32768, num_mel_bins=80, dither=0.0, energy_floor=0.0)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("samples", [400, 719, 720, 879, 880, 1040, 16000])
def test_frames_follow_the_geometry_and_the_last_half_is_repeated(samples):
    backbone = build_backbone(preset("logmel"))
    frames = backbone(noise(samples), torch.tensor([samples]))
    count = (samples - 400) // 320 + 1
    assert frames.x.shape == (1, count, 160)
    assert frames.lens.tolist() == [count]
    fine = (LogMel(80)(noise(samples)) - 14.0) / 4.0
    torch.testing.assert_close(frames.x[0, :, :80], fine[0, ::2][:count])
    last = min(2 * count - 1, fine.shape[1] - 1)
    torch.testing.assert_close(frames.x[0, -1, 80:], fine[0, last])


@pytest.mark.parametrize("overrides", [{}, {"conv_norm": "group"}, {"normalize": True}])
def test_padding_never_changes_a_frame(overrides):
    backbone = build_backbone(preset("logmel", **overrides))
    for samples in (5000, 5041, 5200):
        wave = noise(samples)
        alone = backbone(wave, torch.tensor([samples])).x
        padded = torch.cat([torch.nn.functional.pad(wave, (0, 3000)), noise(samples + 3000, 1)])
        both = backbone(padded, torch.tensor([samples, samples + 3000]))
        torch.testing.assert_close(both.x[:1, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)
        assert both.x.isfinite().all()


def test_group_norm_evens_bins_over_time_but_not_noise_floors():
    backbone = build_backbone(preset("logmel", conv_norm="group"))
    wave = noise(16000) * torch.linspace(0.001, 1, 16000)  # a level that moves by far
    x = backbone(wave, torch.tensor([16000])).x[0]
    torch.testing.assert_close(x.mean(0), torch.zeros(160), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0, unbiased=False), torch.ones(160), atol=1e-3, rtol=0)
    steady = backbone(noise(16000), torch.tensor([16000])).x[0]
    assert steady[:, -10:].std(0).max() < 0.8  # wide bins vary little: not blown up to 1


def test_interface_is_that_of_a_backbone():
    backbone = build_backbone(preset("logmel"))
    assert isinstance(backbone, Backbone)
    assert (backbone.dim, backbone.num_layers, backbone.causal) == (160, 0, False)
    assert (backbone.geometry.hop, backbone.geometry.receptive) == (320, 400)
    assert not list(backbone.parameters())
    assert not backbone.state_dict()
    backbone.begin_step(1, 2)
    z = backbone.encode(noise(4000), torch.tensor([4000]))
    mask = torch.zeros(1, z.x.shape[1], dtype=torch.bool)
    mask[0, 3] = True
    channels = torch.zeros(1, 160, dtype=torch.bool)
    channels[0, 7] = True
    out = backbone.context(z, mask, channel_mask=channels, layers=True)
    assert len(out.layers) == 1
    assert not out.x[0, 3].any()
    assert not out.x[0, :, 7].any()
    torch.testing.assert_close(backbone.features(z), z.x)


def test_other_sizes_and_too_short_batches_are_refused():
    with pytest.raises(ConfigError, match="start from the preset 'logmel'"):
        build_backbone(preset("logmel", conv_strides=(160,)))
    with pytest.raises(ValueError, match="at least 400"):
        build_backbone(preset("logmel"))(noise(399), torch.tensor([399]))
