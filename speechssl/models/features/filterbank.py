"""A learnt filterbank as the first layer of the encoder: log energies of band-pass filters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speechssl.models.blocks.conv import StridedConv
from speechssl.models.features.mel import hertz, mel

LOW_HZ, HIGH_HZ = 60.0, 7600.0  # centres of the outermost bands at 16 kHz
#: Smallest energy told from none: 50 dB below white noise as loud as the waveform.
FLOOR = 1e-5
#: Log energies of speech of unit variance lie near this mean with this spread.
LOG_MEAN, LOG_SPREAD = -6.0, 4.0


def gabor_filters(bands: int, kernel: int, rate_hz: int = 16000) -> Tensor:
    """Filters (2 * bands, kernel), the cosines and then the sines, with taps of unit variance.

    Gaussian windows around centres evenly spaced in mel between 60 Hz and 7.6 kHz (at 16 kHz). The
    width of a band is that of the step to the next, as far as the kernel is long enough for it.
    """
    low, high = mel(torch.tensor([LOW_HZ, HIGH_HZ], dtype=torch.float64)).tolist()
    edges = hertz(torch.linspace(low, high, bands + 1, dtype=torch.float64)) * (rate_hz / 16000)
    centres, steps = edges[:-1], edges.diff()
    seconds = (torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2) / rate_hz
    # A Gaussian that falls to half at half a step from the centre; three of its spreads at least
    # stand on each side inside the kernel.
    spread = (math.sqrt(2 * math.log(2)) / (math.pi * steps)).clamp(max=kernel / rate_hz / 6)
    window = torch.exp(-0.5 * (seconds / spread[:, None]) ** 2)
    phase = 2 * math.pi * centres[:, None] * seconds
    filters = torch.cat([window * phase.cos(), window * phase.sin()])
    filters = filters - filters.mean(1, keepdim=True)  # a constant is no sound
    return (filters / filters.std(1, keepdim=True)).float()


class FilterbankLayer(nn.Module):
    """Log energies of learnt quadrature filters, standardised by a learnt affine map per band.

    Starts as a mel filterbank made of Gabor filters, as LEAF does (arXiv 2101.08596, section 3.1).
    Differs: every tap is free to move, there is no pooling but the stride, and the compression is a
    logarithm. Its taps start with unit variance, so that a step of Adam, which is of equal size for
    all weights, changes them slowly beside the layers that start from nothing.
    """

    def __init__(self, bands: int, kernel: int, stride: int, rate_hz: int) -> None:
        super().__init__()
        self.bands = bands
        self.conv = StridedConv(1, 2 * bands, kernel, stride, bias=False)
        self.conv.weight.data.copy_(gabor_filters(bands, kernel, rate_hz)[:, None])
        self.scale = nn.Parameter(torch.full((bands,), 1 / LOG_SPREAD))
        self.shift = nn.Parameter(torch.full((bands,), -LOG_MEAN / LOG_SPREAD))

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """`x` (B, S, 1) -> (B, T, bands). `lens` is not needed: a frame sees its own span alone."""
        with torch.autocast(x.device.type, enabled=False):
            parts = self.conv(x.float()).unflatten(-1, (2, self.bands))
            energy = parts.square().sum(-2) / self.conv.kernel_size[0]
            return (energy + FLOOR).log() * self.scale + self.shift
