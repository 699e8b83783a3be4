"""Multi-head self-attention over padded sequences, and the ways it knows positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.presets import BackboneConfig


class SelfAttention(nn.Module):
    """Scaled dot-product attention with biased projections (arXiv 1706.03762, section 3.2)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """X (B, T, D), attend bool, True = may be looked at, or None for all.

        `attend` is (B, 1, 1, T) or, where it depends on who looks, (B or 1, 1, T, T).
        `positions` is what `positions_of` gave the first block for T frames.
        """
        q, k, v = (
            self._by_head(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self._attend(q, k, v, attend, positions)

    def positions_of(self, frames: int) -> Tensor | None:
        """What all blocks share about the positions of T frames; None: nothing."""
        return None

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """q, k, v (B, H, T, D / H) -> (B, T, D); `bias` (H, T, T) or with a batch is added."""
        mask = attend
        if bias is not None:
            mask = bias.to(q.dtype)
            mask = mask if attend is None else mask.masked_fill(~attend, float("-inf"))
        dropout = self.dropout if self.training else 0.0
        if bias is not None and torch.compiler.is_exporting():
            # The exporter takes the fused attention apart only where its mask is a boolean.
            assert mask is not None
            y = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + mask, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GatedRelativeAttention(SelfAttention):
    """Attention with WavLM's gated bias of relative positions (arXiv 2110.13900, section 3.2).

    The table of biases is one for the whole network: block 0 holds it (`rel_attn_embed`), and
    `Transformer` hands its values to every block, which gates them by what it attends from.
    """

    def __init__(
        self, dim: int, heads: int, dropout: float, *, buckets: int, max_distance: int, first: bool
    ) -> None:
        super().__init__(dim, heads, dropout)
        self.max_distance = max_distance
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(dim // heads, 8)
        self.rel_attn_embed = nn.Embedding(buckets, heads) if first else None

    def positions_of(self, frames: int) -> Tensor:
        """(H, T, T) values of the table for T frames, ungated. Block 0 only."""
        if self.rel_attn_embed is None:
            raise ValueError("only the first block holds the table of relative positions")
        at = torch.arange(frames, device=self.gru_rel_pos_const.device)
        buckets = self.rel_attn_embed.num_embeddings
        found = relative_bucket(at[None, :] - at[:, None], buckets, self.max_distance)
        return self.rel_attn_embed(found).permute(2, 0, 1)

    def forward(self, x: Tensor, attend: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """As `SelfAttention`."""
        if positions is None:
            raise ValueError("gated relative attention needs the positions of block 0")
        gates = self.gru_rel_pos_linear(self._by_head(x))  # (B, H, T, 8)
        a, b = torch.sigmoid(gates.unflatten(-1, (2, 4)).sum(-1, keepdim=True)).unbind(-2)
        bias = (a * (b * self.gru_rel_pos_const - 1.0) + 2.0) * positions
        return super().forward(x, attend, bias)


class RotaryAttention(SelfAttention):
    """Attention whose queries and keys know their places by rotation (arXiv 2104.09864).

    Differs, as fairseq's conformer does: what is turned is the input of the projections of queries
    and keys, head by head, and not their output.
    """

    def positions_of(self, frames: int) -> Tensor:
        """(2, T, D / H): cosine and sine of every angle."""
        width = self.q_proj.in_features // self.heads
        device = self.q_proj.weight.device
        rates = 10000.0 ** (-torch.arange(0, width, 2, device=device).float() / width)
        angles = torch.arange(frames, device=device).float()[:, None] * rates
        angles = torch.cat((angles, angles), -1)
        return torch.stack((angles.cos(), angles.sin()))

    def forward(self, x: Tensor, attend: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """As `SelfAttention`."""
        if positions is None:
            raise ValueError("rotary attention needs the positions of block 0")
        cos, sin = positions.to(x.dtype)
        heads = self._by_head(x)  # (B, H, T, D / H)
        first, second = heads.chunk(2, -1)
        turned = heads * cos + torch.cat((-second, first), -1) * sin
        turned = turned.transpose(1, 2).flatten(2)
        q, k, v = (
            self._by_head(y) for y in (self.q_proj(turned), self.k_proj(turned), self.v_proj(x))
        )
        return self._attend(q, k, v, attend, None)


class RelativeAttention(SelfAttention):
    """Attention that scores sinusoids of the distance (arXiv 1901.02860, section 3.3)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__(dim, heads, dropout)
        self.pos_proj = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, dim // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, dim // heads))

    def positions_of(self, frames: int) -> Tensor:
        """(2 T - 1, D) sinusoids of the distances i - j from T - 1 down to 1 - T."""
        dim, device = self.q_proj.in_features, self.q_proj.weight.device
        rates = torch.exp(-torch.arange(0, dim, 2, device=device).float() * math.log(1e4) / dim)
        distance = torch.arange(frames - 1, -frames, -1, device=device).float()
        angles = distance[:, None] * rates
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)

    def forward(self, x: Tensor, attend: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """As `SelfAttention`."""
        if positions is None:
            raise ValueError("relative attention needs the positions of block 0")
        q, k, v = (self._by_head(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        table = self._by_head(self.pos_proj(positions.to(x.dtype))[None])  # (1, H, 2 T - 1, D / H)
        scores = (q + self.pos_bias_v[:, None]) @ table.transpose(2, 3)  # (B, H, T, 2 T - 1)
        at = torch.arange(x.shape[1], device=x.device)
        column = (x.shape[1] - 1 - at[:, None] + at[None, :]).expand(*scores.shape[:3], -1)
        bias = scores.gather(-1, column) / math.sqrt(q.shape[-1])
        return self._attend(q + self.pos_bias_u[:, None], k, v, attend, bias)


def relative_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance j - i in frames, int64, same shape (arXiv 1910.10683, section 2.1).

    Half of the buckets are for j > i. Of each half, the first half holds one distance each; the
    others widen logarithmically up to max_distance, and the last holds all beyond.
    """
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    wide = torch.log(size.float() / exact) / math.log(max_distance / exact) * (half - exact)
    wide = (exact + wide.clamp(min=0.0)).long().clamp(max=half - 1)
    return torch.where(size < exact, size, wide) + half * (distance > 0)


def build_attention(cfg: BackboneConfig, index: int) -> SelfAttention:
    """The attention of block `index`."""
    sizes = (cfg.dim, cfg.heads, cfg.attention_dropout)
    if cfg.attention_positions == "gated_relative":
        buckets, furthest = cfg.rel_buckets, cfg.rel_max_distance
        return GatedRelativeAttention(
            *sizes, buckets=buckets, max_distance=furthest, first=index == 0
        )
    kinds = {"none": SelfAttention, "rotary": RotaryAttention, "relative": RelativeAttention}
    return kinds[cfg.attention_positions](*sizes)
