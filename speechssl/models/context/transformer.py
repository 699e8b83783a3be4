"""The context network of the wav2vec 2.0 family: positions and blocks of attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.blocks.attention import build_attention
from speechssl.models.blocks.feed_forward import FeedForward
from speechssl.models.blocks.position import build_position
from speechssl.models.context.conformer import ConformerBlock
from speechssl.models.presets import BackboneConfig
from speechssl.rng import generator
from speechssl.types import Frames


class Block(nn.Module):
    """Attention and feed-forward with residuals; the norm stands before or after each."""

    def __init__(self, cfg: BackboneConfig, index: int) -> None:
        super().__init__()
        self.pre = cfg.norm == "pre"
        self.dropout = cfg.dropout
        self.attention = build_attention(cfg, index)
        self.layer_norm = nn.LayerNorm(cfg.dim)
        self.feed_forward = FeedForward(cfg)
        self.final_layer_norm = nn.LayerNorm(cfg.dim)

    def forward(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        attend: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """X (B, T, D) -> (B, T, D); `attend` and `positions` are for the attention.

        `pad` is for blocks that look at neighbours, as the conformer's do; this one does not.
        """
        if self.pre:
            x = x + self._drop(self.attention(self.layer_norm(x), attend, positions))
            return x + self._drop(self.feed_forward(self.final_layer_norm(x)))
        x = self.layer_norm(x + self._drop(self.attention(x, attend, positions)))
        return self.final_layer_norm(x + self._drop(self.feed_forward(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """Convolutional positions and L blocks (arXiv 2006.11477, section 2).

    LayerDrop (arXiv 1909.11556) skips whole blocks while training. Which ones is a function of
    (seed, step), so that all ranks skip the same: ZeRO mixes up gradients otherwise. A `causal` one
    lets every frame look at itself and those before.
    """

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        self.causal = cfg.causal
        self.pre = cfg.norm == "pre"
        self.dropout = cfg.dropout
        self.layerdrop = cfg.layerdrop
        self.pos_conv_embed = build_position(cfg)
        self.layer_norm = nn.LayerNorm(cfg.dim)
        block = ConformerBlock if cfg.block == "conformer" else Block
        self.layers = nn.ModuleList(block(cfg, i) for i in range(cfg.layers))
        self.num_layers = cfg.layers
        self.dropped: frozenset[int] = frozenset()
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
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
        # Only the CPU may be asked: the answer of another device would have to be waited for, and
        # an exported graph must serve both.
        asked = pad.device.type == "cpu" and not torch.compiler.is_exporting()
        full = asked and not bool(pad.any())
        attend = None if full else ~pad[:, None, None, :]
        if self.causal:
            # Before a frame that counts there is no padding, so that this mask is enough.
            at = torch.arange(z.x.shape[1], device=pad.device)
            attend = (at[None, :] <= at[:, None])[None, None]  # (1, 1, T, T)
        x = z.x if full else z.x.masked_fill(pad[:, :, None], 0.0)
        hidden = None if full else pad
        if self.pos_conv_embed is not None:
            x = x + self.pos_conv_embed(x, hidden)
        if not self.pre:
            x = self.layer_norm(x)
        x = F.dropout(x, self.dropout, self.training)
        first: Any = self.layers[0] if len(self.layers) else None
        positions = None if first is None else first.attention.positions_of(x.shape[1])
        states = []
        for index, block in enumerate(self.layers):
            states.append(x)
            if not (self.training and index in self.dropped):
                x = block(x, hidden, attend, positions)
        if not self.pre:
            return Frames(x, z.lens, (*states, x) if layers else ())
        y = self.layer_norm(x)
        return Frames(y, z.lens, (*states, y), x) if layers else Frames(y, z.lens)

    def feed_forwards(self, z: Frames, top: int) -> list[Tensor]:
        """What the feed-forward parts of the `top` highest blocks put out, lowest block first.

        z.x (B, T, D) projected and masked -> each (B, T, D), before dropout and residual. In
        training mode a block that LayerDrop skips is left out. Conformer blocks have two such
        parts and are not served.
        """
        found: list[Tensor] = []
        hooks = [
            block.feed_forward.register_forward_hook(lambda *call: found.append(call[-1]))  # type: ignore[union-attr]
            for block in self.layers[self.num_layers - top :]
        ]
        try:
            self(z)
        finally:
            for hook in hooks:
                hook.remove()
        return found
