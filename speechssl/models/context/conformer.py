"""The conformer block: attention, and a convolution for what is near (arXiv 2005.08100)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.models.blocks.attention import build_attention
from speechssl.models.blocks.feed_forward import ACTIVATIONS, FeedForward
from speechssl.models.blocks.norms import StoredBatchNorm
from speechssl.models.presets import BackboneConfig


class ConvModule(nn.Module):
    """Pointwise convolution with a gate, depthwise convolution, norm, pointwise convolution.

    Source: arXiv 2005.08100, section 2.2. Differs: padded frames are zero before the depthwise
    convolution; the norm in it is a layer norm by default, because the statistics of a batch would
    make a result depend on the other utterances. A causal one convolves the frames before.
    """

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        dim, kernel = cfg.dim, cfg.block_kernel
        self.layer_norm = nn.LayerNorm(dim)
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1, bias=False)
        padding = kernel - 1 if cfg.causal else kernel // 2
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, padding=padding, groups=dim, bias=False)
        self.batch_norm = StoredBatchNorm(dim) if cfg.block_norm == "batch" else None
        self.inner_norm = nn.LayerNorm(dim) if cfg.block_norm == "layer" else None
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1, bias=False)
        self.activation = ACTIVATIONS[cfg.activation]
        self.dropout = cfg.block_dropout

    def forward(self, x: Tensor, pad: Tensor | None) -> Tensor:
        """X (B, T, D), pad (B, T) bool or None -> (B, T, D)."""
        y = F.glu(self.pointwise_conv1(self.layer_norm(x).transpose(1, 2)), dim=1)
        if pad is not None:
            y = y.masked_fill(pad[:, None, :], 0.0)
        y = self.depthwise_conv(y)[..., : x.shape[1]]
        if self.batch_norm is not None:
            y = self.batch_norm(y)
        if self.inner_norm is not None:
            y = self.inner_norm(y.transpose(1, 2)).transpose(1, 2)
        y = self.pointwise_conv2(self.activation(y)).transpose(1, 2)
        return F.dropout(y, self.dropout, self.training)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, cfg: BackboneConfig, index: int) -> None:
        super().__init__()
        self.dropout = cfg.dropout
        self.attention_dropout = cfg.attention_dropout
        self.ffn1_layer_norm = nn.LayerNorm(cfg.dim)
        self.ffn1 = FeedForward(cfg)
        self.self_attn_layer_norm = nn.LayerNorm(cfg.dim)
        self.attention = build_attention(cfg, index)
        self.conv_module = ConvModule(cfg)
        self.ffn2_layer_norm = nn.LayerNorm(cfg.dim)
        self.ffn2 = FeedForward(cfg)
        self.final_layer_norm = nn.LayerNorm(cfg.dim)

    def forward(
        self,
        x: Tensor,
        pad: Tensor | None = None,
        attend: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """X (B, T, D), pad (B, T) bool or None -> (B, T, D); the rest is for the attention."""
        x = x + 0.5 * self._drop(self.ffn1(self.ffn1_layer_norm(x)), self.dropout)
        attended = self.attention(self.self_attn_layer_norm(x), attend, positions)
        x = x + self._drop(attended, self.attention_dropout)
        x = x + self.conv_module(x, pad)
        x = x + 0.5 * self._drop(self.ffn2(self.ffn2_layer_norm(x)), self.dropout)
        return self.final_layer_norm(x)

    def _drop(self, x: Tensor, rate: float) -> Tensor:
        return F.dropout(x, rate, self.training)
