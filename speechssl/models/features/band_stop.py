"""A band taken out of a waveform, another one for each utterance."""

from __future__ import annotations

import torch
from torch import Tensor

#: Samples on either side that the filter looks at. At 16 kHz (64 ms) its edges are 43 Hz wide.
REACH = 1024


def band_stop(wave: Tensor, lens: Tensor, low: Tensor, high: Tensor, rate_hz: int) -> Tensor:
    """Wave (B, S) without what lies between `low` and `high` (B,) Hz; rows where they meet stay.

    One minus a windowed sinc (Blackman's window) for each row. `lens` (B,) are valid samples:
    silence is assumed beyond, and padding stays zero.
    """
    dtype = torch.promote_types(wave.dtype, torch.float32)
    at = torch.arange(-REACH, REACH + 1, device=wave.device, dtype=dtype)
    window = torch.blackman_window(2 * REACH + 1, periodic=False, device=wave.device, dtype=dtype)
    cuts = 2 * torch.stack([low, high])[..., None].to(dtype) / rate_hz  # (2, B, 1)
    below = cuts * torch.sinc(cuts * at)
    taps = (below[1] - below[0]) * window  # (B, 2 REACH + 1)
    size = wave.shape[1] + 2 * REACH  # long enough for nothing to come round
    product = torch.fft.rfft(wave.to(dtype), size) * torch.fft.rfft(taps, size)
    band = torch.fft.irfft(product, size)[:, REACH : REACH + wave.shape[1]]
    inside = torch.arange(wave.shape[1], device=wave.device) < lens[:, None]
    stopped = inside & (high > low)[:, None]
    return torch.where(stopped, wave - band.to(wave.dtype), wave)
