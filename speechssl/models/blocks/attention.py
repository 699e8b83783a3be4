"""Multi-head self-attention over padded sequences."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def forward(self, x: Tensor, attend: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """X (B, T, D), attend (B, 1, 1, T) bool, True = may be looked at, or None for all.

        `bias` (H, T, T) or (B, H, T, T) is added to the scores.
        """
        q, k, v = (
            self._by_head(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
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

    def position_bias(self, frames: int) -> Tensor:
        """(H, T, T) values of the table for T frames, ungated. Block 0 only."""
        if self.rel_attn_embed is None:
            raise ValueError("only the first block holds the table of relative positions")
        at = torch.arange(frames, device=self.gru_rel_pos_const.device)
        buckets = self.rel_attn_embed.num_embeddings
        found = relative_bucket(at[None, :] - at[:, None], buckets, self.max_distance)
        return self.rel_attn_embed(found).permute(2, 0, 1)

    def forward(self, x: Tensor, attend: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """As `SelfAttention`; `bias` is what `position_bias` of block 0 gave."""
        if bias is None:
            raise ValueError("gated relative attention needs the position bias of block 0")
        gates = self.gru_rel_pos_linear(self._by_head(x))  # (B, H, T, 8)
        a, b = torch.sigmoid(gates.unflatten(-1, (2, 4)).sum(-1, keepdim=True)).unbind(-2)
        return super().forward(x, attend, (a * (b * self.gru_rel_pos_const - 1.0) + 2.0) * bias)


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
