"""The convolutional feature encoder of the wav2vec 2.0 family: raw audio to 50 Hz frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.geometry import FrameGeometry
from speechssl.models.blocks.conv import StridedConv
from speechssl.models.blocks.norms import MaskedGroupNorm
from speechssl.models.features.filterbank import FilterbankLayer
from speechssl.models.presets import BackboneConfig
from speechssl.types import Frames


class ConvLayer(nn.Module):
    """Convolution, then layer norm, group norm or nothing, then GELU, over (B, T, C)."""

    def __init__(self, cfg: BackboneConfig, index: int) -> None:
        super().__init__()
        before = cfg.conv_dims[index - 1] if index else 1
        dim, kernel = cfg.conv_dims[index], cfg.conv_kernels[index]
        self.conv = StridedConv(before, dim, kernel, cfg.conv_strides[index], bias=cfg.conv_bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.layer_norm: nn.Module | None = None
        if cfg.conv_norm == "layer":
            self.layer_norm = nn.LayerNorm(dim)
        elif index == 0:
            self.layer_norm = MaskedGroupNorm(dim, dim)

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """X (B, T, C_in) -> (B, T', C_out); `lens` (B,) are the valid frames of the OUTPUT."""
        x = self.conv(x)
        if isinstance(self.layer_norm, MaskedGroupNorm):
            x = self.layer_norm(x, lens)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return F.gelu(x)


class ConvEncoder(nn.Module):
    """Strided convolutions, seven as published (arXiv 2006.11477, section 2; Appendix A: norms).

    The first may be a learnt filterbank instead, which spares small models the long way to a
    spectrum (see `filterbank`).

    Differs: in `group` mode the statistics of layer 0 run over the valid frames only, so padding
    never changes a result; without padding it equals the original.
    """

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        self.geometry = FrameGeometry(cfg.conv_kernels, cfg.conv_strides, cfg.rate_hz)
        self.dim = cfg.conv_dims[-1]
        self.conv_layers = nn.ModuleList(ConvLayer(cfg, i) for i in range(len(cfg.conv_dims)))
        if cfg.conv_first == "filterbank":
            shape = cfg.conv_dims[0], cfg.conv_kernels[0], cfg.conv_strides[0]
            self.conv_layers[0] = FilterbankLayer(*shape, cfg.rate_hz)

    def forward(self, wave: Tensor, wave_lens: Tensor) -> Frames:
        """Wave (B, S), wave_lens (B,) samples -> Frames with x (B, T, C)."""
        x = wave[:, :, None]
        for index, layer in enumerate(self.conv_layers):
            x = layer(x, self.geometry.layer_frames(wave_lens, index))
        return Frames(x, self.geometry.frames(wave_lens))


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Identity whose gradient is multiplied by `scale` (feature_grad_mult of fairseq)."""
    return x if scale == 1.0 else _ScaleGradient.apply(x, scale)  # type: ignore[return-value]
