"""A band leaves the waveform, and nothing else changes."""

from __future__ import annotations

import math

import torch

from speechssl.models.features.band_stop import REACH, band_stop
from tests.reference import tera_ref

RATE = 16000


def test_it_equals_a_slow_convolution_and_padding_changes_nothing():
    lens = torch.tensor([5000, 3000, 4000])
    wave = torch.randn(3, 5000, dtype=torch.float64)
    wave[torch.arange(5000) >= lens[:, None]] = 0.0
    low = torch.tensor([300.0, 1000.0, 500.0])
    high = torch.tensor([900.0, 8000.0, 500.0])
    found = band_stop(wave, lens, low, high, RATE)
    longer = band_stop(torch.nn.functional.pad(wave, (0, 777)), lens, low, high, RATE)
    torch.testing.assert_close(longer[:, :5000], found)
    assert not longer[:, 5000:].any()
    for row, samples in enumerate(lens.tolist()):
        edges = float(low[row]), float(high[row])
        wanted = tera_ref.without_band(wave[row, :samples], *edges, RATE, REACH)
        torch.testing.assert_close(found[row, :samples], wanted)
        assert not found[row, samples:].any()
    assert torch.equal(found[2], wave[2])


def test_tones_inside_are_gone_and_tones_outside_stay():
    seconds = torch.arange(RATE, dtype=torch.float32) / RATE
    tones = torch.tensor([800.0, 1100.0, 2100.0])
    wave = torch.sin(2 * math.pi * tones[:, None] * seconds)
    low, high = torch.full((3,), 1000.0), torch.full((3,), 2000.0)
    left = band_stop(wave, torch.full((3,), RATE), low, high, RATE)[:, REACH:-REACH]
    assert float(left[1].abs().max()) < 1e-3
    for row in (0, 2):
        torch.testing.assert_close(left[row], wave[row, REACH:-REACH], atol=1e-3, rtol=0)
