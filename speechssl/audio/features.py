"""Hand-made features of one waveform: the baselines that learned ones must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechssl.audio import backend

if TYPE_CHECKING:
    from torch import Tensor

WINDOW_SEC = 0.025
HOP_SEC = 0.010


def log_mel(wave: np.ndarray | Tensor, num_bins: int = 80, *, rate_hz: int = 16_000) -> np.ndarray:
    """Kaldi log-mel energies of `wave` (S,) in [-1, 1] -> (T, num_bins) float32, 25/10 ms.

    Less than one window gives T = 0. Nothing is normalised.
    """
    samples = _samples(wave)
    if len(samples) < round(WINDOW_SEC * rate_hz):
        return np.zeros((0, num_bins), np.float32)
    return backend.kaldi_fbank(samples, num_bins=num_bins, rate_hz=rate_hz).numpy()


def mfcc39(wave: np.ndarray | Tensor, *, rate_hz: int = 16_000) -> np.ndarray:
    """13 mel cepstra with slopes and slopes of slopes: `wave` (S,) -> (T, 39) float32, 25/10 ms.

    The features HuBERT clusters first (arXiv 2106.07447, section IV-B).
    Differs: samples are scaled to 16 bits as Kaldi expects, which shifts C0 by a constant.
    """
    import torch

    samples = _samples(wave)
    if len(samples) < round(WINDOW_SEC * rate_hz):
        return np.zeros((0, 39), np.float32)
    ceps = backend.kaldi_mfcc(samples, rate_hz=rate_hz)
    slopes = backend.deltas(ceps)
    return torch.cat([ceps, slopes, backend.deltas(slopes)], dim=1).contiguous().numpy()


def _samples(wave: np.ndarray | Tensor) -> Tensor:
    import torch

    samples = torch.as_tensor(wave, dtype=torch.float32).detach().cpu()
    if samples.ndim != 1:
        raise ValueError(f"expected one waveform (S,), got shape {tuple(samples.shape)}")
    return samples
