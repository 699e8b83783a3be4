"""Baseline features: shapes, and agreement with a plain computation."""

import numpy as np
import pytest
import torch

from speechssl.audio import backend
from speechssl.audio.features import log_mel, mfcc39


@pytest.fixture
def wave() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)


def test_shapes_and_types(wave: np.ndarray) -> None:
    for features, width in ((log_mel(wave), 80), (log_mel(wave, 23), 23), (mfcc39(wave), 39)):
        assert features.shape == (98, width)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
    np.testing.assert_array_equal(log_mel(torch.from_numpy(wave)), log_mel(wave))


def test_less_than_a_window_gives_no_frames() -> None:
    assert log_mel(np.zeros(399, np.float32)).shape == (0, 80)
    assert mfcc39(np.zeros(399, np.float32)).shape == (0, 39)


def test_loudness_only_shifts_log_mel(wave: np.ndarray) -> None:
    np.testing.assert_allclose(log_mel(wave) - log_mel(wave / 4), np.log(16), atol=1e-3)


def test_slopes_are_those_of_the_regression_formula(wave: np.ndarray) -> None:
    found = mfcc39(wave)
    ceps = found[:, :13]
    t = 40
    slope = sum(n * (ceps[t + n] - ceps[t - n]) for n in (1, 2)) / 10
    np.testing.assert_allclose(found[t, 13:26], slope, rtol=1e-4, atol=1e-4)


def test_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="one waveform"):
        log_mel(np.zeros((2, 16_000), np.float32))


def test_forced_align_finds_the_only_path() -> None:
    best = torch.tensor([0, 2, 2, 0, 1, 0])
    log_probs = torch.full((6, 3), -9.0)
    log_probs[torch.arange(6), best] = -0.1
    path, scores = backend.forced_align(log_probs, torch.tensor([2, 1]))
    assert path.tolist() == best.tolist()
    torch.testing.assert_close(scores, torch.full((6,), -0.1))


def test_forced_align_says_when_tokens_do_not_fit() -> None:
    with pytest.raises(ValueError, match="need 3 frames, got 2"):
        backend.forced_align(torch.zeros(2, 3), torch.tensor([1, 1]))
    path, _ = backend.forced_align(torch.zeros(2, 3), torch.tensor([], dtype=torch.long))
    assert path.tolist() == [0, 0]
