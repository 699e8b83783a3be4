"""Relative positions by a wide grouped convolution."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class ConvPosition(nn.Module):
    """Grouped convolution with weight norm per tap, then GELU (arXiv 2006.11477, section 2).

    An even kernel would add a frame; the last one is dropped, as in the original.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * dim)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.conv = weight_norm(conv, name="weight", dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, T, D), zero where padded -> (B, T, D)."""
        y = self.conv(x.transpose(1, 2))[..., : x.shape[1]]
        return F.gelu(y).transpose(1, 2)
