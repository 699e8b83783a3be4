"""The convolutional context network of wav2vec (v1), which looks only backwards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.blocks.conv import StridedConv
from speechssl.models.blocks.norms import MaskedGroupNorm
from speechssl.models.presets import BackboneConfig
from speechssl.types import Frames


class AggregatorLayer(nn.Module):
    """Causal convolution, normalisation over channels and time, ReLU, residual; over (B, T, D)."""

    def __init__(self, before: int, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv = StridedConv(before, dim, kernel)
        self.layer_norm = MaskedGroupNorm(1, dim)
        self.residual = StridedConv(before, dim, 1, bias=False) if before != dim else None

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """`x` (B, T, D_in), `lens` (B,) valid frames -> (B, T, D)."""
        # The first frame stands in for the past before the utterance.
        past = x[:, :1].expand(-1, self.conv.kernel_size[0] - 1, -1)
        y = F.dropout(self.conv(torch.cat([past, x], 1)), self.dropout, self.training)
        y = F.relu(self.layer_norm(y, lens))
        if self.residual is not None:
            x = self.residual(x)
        return (y + x) * 0.5**0.5  # keeps the variance of a sum of two


class ConvAggregator(nn.Module):
    """Stacked causal convolutions (arXiv 1904.05862, section 2.1).

    The paper's networks: nine layers of width 3 (base), twelve of width 2 to 13 (large). Not
    `causal`, though the convolutions are: the statistics of the norms, which are of learnt
    features, cover the whole utterance, as in the original.
    """

    causal = False

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        dims = (cfg.conv_dims[-1], *[cfg.dim] * cfg.layers)
        self.layers = nn.ModuleList(
            AggregatorLayer(before, cfg.dim, kernel, cfg.dropout)
            for before, kernel in zip(dims[:-1], cfg.context_kernels, strict=True)
        )
        self.num_layers = cfg.layers

    def forward(self, z: Frames, *, layers: bool = False) -> Frames:
        """z.x (B, T, C) -> Frames with x (B, T, D).

        With `layers`, L + 1 states: the input of each layer, then the final output.
        """
        x, states = z.x, []
        for layer in self.layers:
            states.append(x)
            x = layer(x, z.lens)
        return Frames(x, z.lens, (*states, x) if layers else ())
