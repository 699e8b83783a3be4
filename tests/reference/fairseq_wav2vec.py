"""wav2vec (v1) as fairseq 0.12 builds it, from its description: names, paddings, residuals.

Written anew for tests, slow and plain: models/wav2vec/wav2vec.py says what stands where.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def _block(conv: nn.Conv1d, dim: int, before: list[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*before, conv, nn.Dropout(0.0), nn.GroupNorm(1, dim), nn.ReLU())


class _Extractor(nn.Module):
    def __init__(self, layers: list[tuple[int, int, int]]) -> None:
        super().__init__()
        before, blocks = 1, []
        for dim, kernel, stride in layers:
            blocks.append(_block(nn.Conv1d(before, dim, kernel, stride, bias=False), dim, []))
            before = dim
        self.conv_layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for block in self.conv_layers:
            x = block(x)
        return (x.abs() + 1).log()


class _Aggregator(nn.Module):
    def __init__(self, before: int, layers: list[tuple[int, int, int]]) -> None:
        super().__init__()
        blocks, residuals = [], []
        for dim, kernel, stride in layers:
            pad = nn.ReplicationPad1d((kernel - 1, 0))
            blocks.append(_block(nn.Conv1d(before, dim, kernel, stride), dim, [pad]))
            residuals.append(nn.Conv1d(before, dim, 1, bias=False) if before != dim else None)
            before = dim
        self.conv_layers = nn.Sequential(*blocks)
        self.residual_proj = nn.ModuleList(residuals)

    def forward(self, x: Tensor) -> Tensor:
        for residual, block in zip(self.residual_proj, self.conv_layers, strict=True):
            short = x if residual is None else residual(x)
            x = (block(x) + short) * math.sqrt(0.5)
        return x


class _Predictions(nn.Module):
    def __init__(self, dim: int, channels: int, steps: int) -> None:
        super().__init__()
        self.project_to_steps = nn.ConvTranspose2d(dim, channels, (1, steps))


class FairseqWav2Vec(nn.Module):
    """The modules of their Wav2VecModel without a quantizer."""

    def __init__(
        self, convs: list[tuple[int, int, int]], context: list[tuple[int, int, int]], steps: int
    ) -> None:
        super().__init__()
        self.feature_extractor = _Extractor(convs)
        self.feature_aggregator = _Aggregator(convs[-1][0], context)
        self.wav2vec_predictions = _Predictions(context[-1][0], convs[-1][0], steps)

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """`wave` (B, S) -> local features and context, each (B, C, T)."""
        z = self.feature_extractor(wave)
        return z, self.feature_aggregator(z)

    def predictions(self, context: Tensor) -> Tensor:
        """(B, D, T) -> (B, C, T, steps)."""
        return self.wav2vec_predictions.project_to_steps(context[..., None])


def settings(convs: list, context: list) -> dict:
    """The options that such a checkpoint carries."""
    return {
        "conv_feature_layers": str(convs), "conv_aggregator_layers": str(context),
        "log_compression": True, "skip_connections_feat": False, "skip_connections_agg": True,
        "residual_scale": 0.5, "agg_zero_pad": False, "activation": "relu", "aggregator": "cnn",
        "non_affine_group_norm": False, "prediction_steps": 12, "num_negatives": 7,
        "offset": "auto", "dropout": 0.0,
    }  # fmt: skip


def noise(samples: int) -> Tensor:
    """(1, S)."""
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(1))
