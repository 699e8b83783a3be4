"""Positions by convolution.

`causal` ones see a frame and those before it: padded by all of the kernel but one frame, with the
frames beyond the last dropped.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechssl.models.blocks.norms import StoredBatchNorm
from speechssl.models.presets import BackboneConfig


class ConvPosition(nn.Module):
    """Grouped convolution with weight norm per tap, then GELU (arXiv 2006.11477, section 2).

    With `batch_norm` the weights are plain, and the input is normalised per channel first.
    An even kernel would add a frame; the last one is dropped, as in the original.
    """

    def __init__(
        self, dim: int, kernel: int, groups: int, *, batch_norm: bool = False, causal: bool = False
    ) -> None:
        super().__init__()
        padding = kernel - 1 if causal else kernel // 2
        conv = nn.Conv1d(dim, dim, kernel, padding=padding, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * dim)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.batch_norm = StoredBatchNorm(dim) if batch_norm else None
        self.conv = conv if batch_norm else weight_norm(conv, name="weight", dim=2)

    def forward(self, x: Tensor, pad: Tensor | None) -> Tensor:
        """X (B, T, D), zero where pad (B, T) is True; None pads nothing -> (B, T, D)."""
        y = x.transpose(1, 2)
        if self.batch_norm is not None:
            y = self.batch_norm(y)
            y = y if pad is None else y.masked_fill(pad[:, None, :], 0.0)
        return F.gelu(self.conv(y)[..., : x.shape[1]]).transpose(1, 2)


class ConvStackPosition(nn.Module):
    """Grouped convolutions, each followed by a layer norm without weights and GELU (data2vec).

    Source: arXiv 2202.03555, section 4.2. Differs: padded frames are zero before every convolution,
    so that padding never changes a result; the original lets it in after the first.
    """

    def __init__(
        self, dim: int, kernel: int, groups: int, depth: int, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _PlainConv(dim, kernel, groups, causal=causal) for _ in range(depth)
        )

    def forward(self, x: Tensor, pad: Tensor | None) -> Tensor:
        """X (B, T, D), zero where pad (B, T) is True; None pads nothing -> (B, T, D)."""
        for index, layer in enumerate(self.layers):
            if index and pad is not None:
                x = x.masked_fill(pad[:, :, None], 0.0)
            x = layer(x)
        return x


class _PlainConv(nn.Module):
    """Convolution, layer norm without weights, GELU."""

    def __init__(self, dim: int, kernel: int, groups: int, *, causal: bool) -> None:
        super().__init__()
        padding = kernel - 1 if causal else kernel // 2
        self.conv = nn.Conv1d(dim, dim, kernel, padding=padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """X (B, T, D) -> (B, T, D)."""
        y = self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return F.gelu(F.layer_norm(y, y.shape[-1:]))


def build_position(cfg: BackboneConfig) -> ConvPosition | ConvStackPosition | None:
    """The kind that `cfg.pos_conv` names; None for `none`."""
    if cfg.pos_conv == "none":
        return None
    if cfg.pos_conv == "stack":
        return ConvStackPosition(
            cfg.dim, cfg.pos_kernel, cfg.pos_groups, cfg.pos_depth, causal=cfg.causal
        )
    batch_norm = cfg.pos_conv == "batch_norm"
    return ConvPosition(
        cfg.dim, cfg.pos_kernel, cfg.pos_groups, batch_norm=batch_norm, causal=cfg.causal
    )
