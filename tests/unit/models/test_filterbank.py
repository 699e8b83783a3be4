import math

import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.features.filterbank import HIGH_HZ, LOW_HZ, FilterbankLayer, gabor_filters
from speechssl.models.formats.hf_config import family, to_hf
from speechssl.models.presets import preset

RATE = 16000


def small(**overrides):
    shape = {"conv_dims": (24, 32), "dim": 32, "layers": 1, "heads": 2, "ffn": 64, "pos_kernel": 8}
    kernels = {"conv_kernels": (400, 2), "conv_strides": (160, 2)}
    return preset("filterbank-tiny", **(shape | kernels | overrides))


def tone(hertz, seconds=0.2, phase=0.0):
    time = torch.arange(int(seconds * RATE)) / RATE
    return torch.sin(2 * math.pi * hertz * time + phase)[None, :, None]


def lens(x):
    return torch.tensor([x.shape[1]])


def test_filters_are_band_passes_on_the_mel_scale():
    bands, kernel = 40, 400
    filters = gabor_filters(bands, kernel)
    assert filters.shape == (2 * bands, kernel)
    response = torch.fft.rfft(filters, n=16384).abs()
    peaks = response.argmax(-1) * RATE / 16384

    def mel(hertz):
        return 1127 * math.log1p(hertz / 700)

    step = (mel(HIGH_HZ) - mel(LOW_HZ)) / bands
    for band in range(bands):
        wanted = 700 * math.expm1((mel(LOW_HZ) + band * step) / 1127)
        for peak in (peaks[band], peaks[bands + band]):  # cosine and sine
            assert abs(peak - wanted) < 25.0, (band, peak, wanted)
    torch.testing.assert_close(filters.mean(1), torch.zeros(2 * bands), atol=1e-6, rtol=0)
    torch.testing.assert_close(filters.std(1), torch.ones(2 * bands))


def test_energy_does_not_depend_on_the_phase():
    layer = FilterbankLayer(40, 400, 160, RATE)
    at = [layer(tone(1000.0, phase=p), None)[0, 5] for p in (0.0, 0.7, 1.4, 2.1)]
    loudest = at[0].argmax()
    for other in at[1:]:
        assert other.argmax() == loudest
        assert abs(other[loudest] - at[0][loudest]) < 0.01


def test_it_equals_a_slow_sum_over_taps():
    torch.manual_seed(0)
    layer = FilterbankLayer(6, 64, 20, RATE)
    layer.scale.data.normal_()
    layer.shift.data.normal_()
    wave = torch.randn(2, 200)
    got = layer(wave[:, :, None], torch.tensor([200, 200]))
    taps = layer.conv.weight[:, 0].double()
    for frame in range(got.shape[1]):
        span = wave[:, 20 * frame : 20 * frame + 64].double()
        for band in range(6):
            cosine, sine = (span * taps[band]).sum(1), (span * taps[6 + band]).sum(1)
            log = ((cosine**2 + sine**2) / 64 + 1e-5).log()
            want = log * layer.scale[band].double() + layer.shift[band].double()
            torch.testing.assert_close(got[:, frame, band].double(), want, atol=1e-4, rtol=1e-4)


def test_silence_and_autocast_are_finite_and_every_parameter_learns():
    layer = FilterbankLayer(40, 400, 160, RATE)
    out = layer(torch.zeros(1, 1600, 1), None)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    layer.zero_grad()
    x = tone(500.0)
    plain = layer(x, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x, None), plain)  # squares and logs are no work for 8 bits
    plain.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_padding_changes_nothing():
    torch.manual_seed(0)
    backbone = Backbone(small()).eval()
    wave = torch.randn(1, 12000)
    alone = backbone(wave, torch.tensor([12000])).x
    padded = torch.zeros(2, 20000)
    padded[0, :12000] = wave
    padded[1].normal_()
    both = backbone(padded, torch.tensor([12000, 20000]))
    assert both.lens[0] == alone.shape[1]
    torch.testing.assert_close(both.x[:1, : alone.shape[1]], alone, atol=1e-5, rtol=1e-5)


def test_frames_stand_40_ms_apart():
    backbone = Backbone(preset("filterbank-tiny"))
    assert backbone.geometry.hop == 640
    assert backbone.geometry.receptive == 880


def test_no_class_of_hugging_face_is_claimed():
    assert not family(small())
    assert to_hf(small()) == {"model_type": "speechssl-wav2vec2-filterbank", "architectures": []}


@pytest.mark.parametrize(
    "wrong", [{"conv_norm": "group"}, {"context": "conv", "context_kernels": (3,)}]
)
def test_settings_without_a_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match="conv_first"):
        small(**wrong)


def test_bands_scale_with_the_rate():
    # Half the rate: every frequency is halved, so a tap of the same number is the same.
    torch.testing.assert_close(gabor_filters(20, 400, 8000), gabor_filters(20, 400, 16000))
