"""Recurrent layers that only look backwards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.presets import BackboneConfig
from speechssl.types import Frames


class GRUStack(nn.Module):
    """Unidirectional gated recurrent layers (arXiv 1904.03240).

    Published as three layers of 512. Every layer but the first adds its input to its output;
    dropout stands between layers. Padding comes after the frames, so that none of them sees it.
    """

    causal = True

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        # A module per layer, for the states between them.
        self.layers = nn.ModuleList(
            nn.GRU(cfg.dim, cfg.dim, batch_first=True) for _ in range(cfg.layers)
        )
        self.num_layers = cfg.layers
        self.dropout = cfg.dropout

    def forward(self, z: Frames, *, layers: bool = False) -> Frames:
        """z.x (B, T, D) projected and masked -> Frames with x (B, T, D).

        With `layers`, L + 1 states: the input of each layer, then the final output.
        """
        x: Tensor = z.x
        states = []
        for index, layer in enumerate(self.layers):
            if index:
                x = F.dropout(x, self.dropout, self.training)
            states.append(x)
            y, _ = layer(x)
            x = x + y if index else y
        return Frames(x, z.lens, (*states, x) if layers else ())
