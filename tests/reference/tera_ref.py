"""Loss of TERA, slowly: one bin of one frame at a time, in float64.

Written from arXiv 2007.06028, section 3 (time and channel alteration), not from the library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def stands_here(x: Tensor, replacement: list[int], mask_vector: Tensor) -> Tensor:
    """Frames x (T, D) of one utterance after alteration in time; -1 is the mask vector."""
    return torch.stack([mask_vector if t < 0 else x[t] for t in replacement])


def loss(
    predicted: Tensor,
    wanted: Sequence[Sequence[float]],
    chosen: list[bool],
    band: tuple[int, int],
    bins: int,
) -> tuple[Tensor, int]:
    """Sum over altered bins and their number, for one utterance of (T, R bins) frames."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    parts = predicted.shape[1] // bins
    for t in range(len(wanted)):
        for b in range(bins):
            if chosen[t] or band[0] <= b < band[0] + band[1]:
                count += 1
                for part in range(parts):
                    place = part * bins + b
                    total = total + (predicted[t, place] - wanted[t][place]).abs() / parts
    return total, count


def without_band(wave: Tensor, low_hz: float, high_hz: float, rate_hz: int, reach: int) -> Tensor:
    """Samples (S,) minus what a windowed sinc of 2 reach + 1 taps lets through."""
    if high_hz <= low_hz:
        return wave
    taps = []
    for n in range(-reach, reach + 1):
        phase = math.pi * (n + reach) / reach
        window = 0.42 - 0.5 * math.cos(phase) + 0.08 * math.cos(2 * phase)
        if n == 0:
            ideal = 2 * (high_hz - low_hz) / rate_hz
        else:
            up, down = (math.sin(2 * math.pi * f / rate_hz * n) for f in (high_hz, low_hz))
            ideal = (up - down) / (math.pi * n)
        taps.append(ideal * window)
    filtered = torch.nn.functional.conv1d(
        wave[None, None], torch.tensor(taps, dtype=wave.dtype)[None, None], padding=reach
    )
    return wave - filtered[0, 0]
