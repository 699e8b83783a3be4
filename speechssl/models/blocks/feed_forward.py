"""The part of a block that sees one frame at a time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.presets import BackboneConfig

ACTIVATIONS = {"gelu": F.gelu, "swish": F.silu}


class FeedForward(nn.Module):
    """Two linear layers with the activation between."""

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(cfg.dim, cfg.ffn)
        self.output_dense = nn.Linear(cfg.ffn, cfg.dim)
        self.dropout = cfg.activation_dropout
        self.activation = ACTIVATIONS[cfg.activation]

    def forward(self, x: Tensor) -> Tensor:
        """X (B, T, D) -> (B, T, D)."""
        x = self.activation(self.intermediate_dense(x))
        return self.output_dense(F.dropout(x, self.dropout, self.training))
