"""Log-mel filterbank energies on the device, as Kaldi computes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WINDOW, HOP, FFT = 400, 160, 512  # samples at 16 kHz: 25 ms, 10 ms
LOW_HZ, RATE_HZ = 20.0, 16000
PREEMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps
#: Least standard deviation (nats) that a bin is divided by. Bins above the band of upsampled
#: telephone speech hold a noise floor of about 0.5 that would be blown up to the size of speech.
LEAST_STD = 1.0


def mel(hz: Tensor) -> Tensor:
    """Frequencies in mel, 1127 ln(1 + f / 700): the scale of HTK and Kaldi."""
    return 1127.0 * torch.log1p(hz / 700.0)


def hertz(mels: Tensor) -> Tensor:
    """Frequencies in Hz; undoes `mel`."""
    return 700.0 * torch.expm1(mels / 1127.0)


def mel_edges(num_bins: int) -> Tensor:
    """(bins + 2,) even in mel, 20 Hz to 8 kHz, float64: bin i has edges i to i + 2, peak i + 1."""
    ends = mel(torch.tensor([LOW_HZ, RATE_HZ / 2], dtype=torch.float64))
    return torch.linspace(ends[0].item(), ends[1].item(), num_bins + 2, dtype=torch.float64)


def mel_bank(num_bins: int) -> Tensor:
    """Triangular filters (FFT/2 + 1, bins), even in spacing and shape in mel, 20 Hz to 8 kHz."""
    edges = mel_edges(num_bins)
    bins = mel(torch.arange(FFT // 2 + 1, dtype=torch.float64) * RATE_HZ / FFT)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0.0).float()


class LogMel(nn.Module):
    """Log-mel energies every 10 ms without parameters; no dither, so results repeat."""

    window: Tensor
    bank: Tensor

    def __init__(self, num_bins: int = 80) -> None:
        super().__init__()
        self.num_bins = num_bins
        povey = torch.hann_window(WINDOW, periodic=False).pow(0.85)
        self.register_buffer("window", povey, persistent=False)
        self.register_buffer("bank", mel_bank(num_bins), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """Natural logs (B, F, num_bins) of wave (B, S) in [-1, 1], F = (S - 400) // 160 + 1.

        Frame j sees samples [160 j, 160 j + 400). Levels are those of 16-bit samples, as in Kaldi.
        """
        with torch.autocast(wave.device.type, enabled=False):
            frames = (wave.float() * 32768.0).unfold(1, WINDOW, HOP)  # (B, F, WINDOW)
            frames = frames - frames.mean(-1, keepdim=True)
            before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
            frames = (frames - PREEMPHASIS * before) * self.window
            power = torch.fft.rfft(frames, n=FFT).abs().square()
            return (power @ self.bank).clamp(min=FLOOR).log()


def stack_frames(mel: Tensor, wave_lens: Tensor, frames: int, hop: int) -> Tensor:
    """Neighbouring log-mel frames (B, F, n) side by side: (B, frames, r n), r = hop / 160.

    Row i of an utterance of `wave_lens` (B,) samples holds its mel frames r i to r i + r - 1, those
    that start with the samples hop * i on. Where the utterance ends before, the last one repeats.
    Raises ValueError when `hop` is no multiple of 160.
    """
    if hop % HOP:
        raise ValueError(f"got frames of {hop} samples, expected a multiple of {HOP}")
    ratio = hop // HOP
    wanted = torch.arange(frames * ratio, device=mel.device)
    last = ((wave_lens - WINDOW) // HOP).clamp(min=0)  # (B,)
    index = torch.minimum(wanted, last[:, None])[..., None].expand(-1, -1, mel.shape[2])
    return mel.gather(1, index).unflatten(1, (frames, ratio)).flatten(2)
