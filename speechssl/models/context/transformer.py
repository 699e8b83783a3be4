"""The transformer context network of the wav2vec 2.0 family."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.blocks.attention import SelfAttention
from speechssl.models.blocks.position import ConvPosition
from speechssl.models.presets import BackboneConfig
from speechssl.rng import generator
from speechssl.types import Frames


class FeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(dim, hidden)
        self.output_dense = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """X (B, T, D) -> (B, T, D)."""
        x = F.gelu(self.intermediate_dense(x))
        return self.output_dense(F.dropout(x, self.dropout, self.training))


class Block(nn.Module):
    """Attention and feed-forward with residuals; the norm stands before or after each."""

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        self.pre = cfg.norm == "pre"
        self.dropout = cfg.dropout
        self.attention = SelfAttention(cfg.dim, cfg.heads, cfg.attention_dropout)
        self.layer_norm = nn.LayerNorm(cfg.dim)
        self.feed_forward = FeedForward(cfg.dim, cfg.ffn, cfg.activation_dropout)
        self.final_layer_norm = nn.LayerNorm(cfg.dim)

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        """X (B, T, D) -> (B, T, D)."""
        if self.pre:
            x = x + self._drop(self.attention(self.layer_norm(x), attend))
            return x + self._drop(self.feed_forward(self.final_layer_norm(x)))
        x = self.layer_norm(x + self._drop(self.attention(x, attend)))
        return self.final_layer_norm(x + self._drop(self.feed_forward(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """Convolutional positions and L blocks (arXiv 2006.11477, section 2).

    LayerDrop (arXiv 1909.11556) skips whole blocks while training. Which ones is a function of
    (seed, step), so that all ranks skip the same: ZeRO mixes up gradients otherwise.
    """

    causal = False

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        self.pre = cfg.norm == "pre"
        self.dropout = cfg.dropout
        self.layerdrop = cfg.layerdrop
        self.pos_conv_embed = ConvPosition(cfg.dim, cfg.pos_kernel, cfg.pos_groups)
        self.layer_norm = nn.LayerNorm(cfg.dim)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.num_layers = cfg.layers
        self.dropped: frozenset[int] = frozenset()
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def begin_step(self, seed: int, step: int) -> None:
        """Draw the blocks that update `step` skips."""
        draws = generator(seed, step, "layerdrop").random(self.num_layers)
        self.dropped = frozenset(i for i, u in enumerate(draws) if u < self.layerdrop)

    def forward(self, z: Frames, *, layers: bool = False) -> Frames:
        """z.x (B, T, D) projected and masked -> Frames.

        With `layers`, L + 1 states as SUPERB counts them: the input of each block, then the final
        output (after the last norm when pre-norm).
        """
        pad = z.pad
        # Only the CPU may be asked: the answer of another device would have to be waited for.
        full = pad.device.type == "cpu" and not bool(pad.any())
        attend = None if full else ~pad[:, None, None, :]
        x = z.x if full else z.x.masked_fill(pad[:, :, None], 0.0)
        x = x + self.pos_conv_embed(x)
        if not self.pre:
            x = self.layer_norm(x)
        x = F.dropout(x, self.dropout, self.training)
        states = []
        for index, block in enumerate(self.layers):
            states.append(x)
            if not (self.training and index in self.dropped):
                x = block(x, attend)
        if self.pre:
            x = self.layer_norm(x)
        return Frames(x, z.lens, (*states, x) if layers else ())
