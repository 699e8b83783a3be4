"""Normalisation over the frames that exist, so that padding never changes a result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def standardise(
    x: Tensor,
    lens: Tensor,
    *,
    least_std: float = 1e-5,
    eps: float = 1e-12,
    hidden: Tensor | None = None,
) -> Tensor:
    """Zero mean and unit variance of each channel over the valid frames of its utterance.

    x (B, T, C), lens (B,) frames -> (B, T, C), 0 in padding. Frames that `hidden` (B, T) marks have
    no part in mean and variance, but are shifted and scaled like the others. Deviations below
    `least_std` count as that much; `eps` is added to the variance. Speech recognition knows it as
    CMVN, and with eps 1e-5 it is instance normalisation (arXiv 1607.08022).
    """
    pad = (torch.arange(x.shape[1], device=x.device) >= lens[:, None])[..., None]  # (B, T, 1)
    apart = pad if hidden is None else pad | hidden[..., None]
    count = (~apart).sum(1, keepdim=True).clamp(min=1)
    mean = x.masked_fill(apart, 0.0).sum(1, keepdim=True) / count
    centred = (x - mean).masked_fill(pad, 0.0)
    variance = centred.masked_fill(apart, 0.0).square().sum(1, keepdim=True) / count
    # The root alone has an infinite gradient at 0, where a constant channel is.
    return centred / (variance + eps).sqrt().clamp(min=least_std)


class MaskedGroupNorm(nn.Module):
    """Group normalisation of (B, T, C) whose statistics cover frames [0, lens) of each row only.

    Equals `torch.nn.GroupNorm` on (B, C, T) where nothing is padded, with the same parameter names
    and shapes (arXiv 1803.08494). Padded frames come out as the bias, whatever they held.
    Statistics are computed in at least float32; the result has the input's dtype.
    """

    def __init__(self, num_groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        if channels % num_groups:
            raise ValueError(f"{channels} channels do not divide into {num_groups} groups")
        self.num_groups = num_groups
        self.channels = channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """Normalise `x` (B, T, C); `lens` (B,) counts the valid frames of each row."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        steps = torch.arange(x.shape[1], device=x.device)
        valid = (steps < lens[:, None])[:, :, None]  # (B, T, 1)
        # A row without frames divides by one instead of by zero.
        counts = (lens * (self.channels // self.num_groups)).clamp(min=1)[:, None]  # (B, 1)
        # Two passes, mean and then squared deviations: E[x^2] - E[x]^2 cancels under a DC offset.
        mean = self._over_group(torch.where(valid, x, 0).sum(1, dtype=dtype)) / counts
        centred = torch.where(valid, x.to(dtype) - mean[:, None], 0)  # the one tensor kept
        variance = self._over_group(centred.square().sum(1)) / counts
        scale = torch.rsqrt(variance + self.eps) * self.weight.to(dtype)  # (B, C)
        return torch.addcmul(self.bias.to(dtype), centred, scale[:, None]).to(x.dtype)

    def _over_group(self, sums: Tensor) -> Tensor:
        """(B, C) sums over time -> (B, C), each the sum over its channel's group.

        Time goes first, along contiguous channels; nothing is left to do when every channel is its
        own group.
        """
        if self.num_groups == self.channels:
            return sums
        per_group = sums.unflatten(1, (self.num_groups, -1)).sum(2)
        return per_group.repeat_interleave(self.channels // self.num_groups, dim=1)

    def extra_repr(self) -> str:
        """What `print(module)` shows."""
        return f"{self.num_groups}, {self.channels}, eps={self.eps}"


class StoredBatchNorm(nn.BatchNorm1d):
    """Batch normalisation by its stored statistics, in training as in evaluation.

    Statistics of a batch would make a result depend on padding and on the other utterances.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Input (B, D, T) -> (B, D, T)."""
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
