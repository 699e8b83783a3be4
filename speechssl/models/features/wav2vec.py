"""The convolutional feature encoder of wav2vec (v1): raw audio to 100 Hz frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.geometry import FrameGeometry
from speechssl.models.blocks.conv import StridedConv
from speechssl.models.blocks.norms import MaskedGroupNorm
from speechssl.models.presets import BackboneConfig
from speechssl.types import Frames


class Wav2VecLayer(nn.Module):
    """Convolution, normalisation over channels and time, ReLU, over (B, T, C)."""

    def __init__(self, cfg: BackboneConfig, index: int) -> None:
        super().__init__()
        before = cfg.conv_dims[index - 1] if index else 1
        dim, kernel = cfg.conv_dims[index], cfg.conv_kernels[index]
        stride = cfg.conv_strides[index]
        self.conv = StridedConv(before, dim, kernel, stride, bias=cfg.conv_bias)
        self.layer_norm = MaskedGroupNorm(1, dim)

    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        """`x` (B, T, C_in) -> (B, T', C_out); `lens` (B,) are the valid frames of the OUTPUT."""
        return F.relu(self.layer_norm(self.conv(x), lens))


class Wav2VecEncoder(nn.Module):
    """Five (base) or seven (large, two more of width 1) convolutions (arXiv 1904.05862, sec. 2.1).

    The result is ln(1 + |z|) of the last layer. Differs: the statistics of the norms run over the
    valid frames only, so padding never changes a result; without padding it equals the original.
    """

    def __init__(self, cfg: BackboneConfig) -> None:
        super().__init__()
        self.geometry = FrameGeometry(cfg.conv_kernels, cfg.conv_strides, cfg.rate_hz)
        self.dim = cfg.conv_dims[-1]
        self.conv_layers = nn.ModuleList(Wav2VecLayer(cfg, i) for i in range(len(cfg.conv_dims)))

    def forward(self, wave: Tensor, wave_lens: Tensor) -> Frames:
        """`wave` (B, S), `wave_lens` (B,) samples -> Frames with x (B, T, C), all >= 0."""
        x = wave[:, :, None]
        for index, layer in enumerate(self.conv_layers):
            x = layer(x, self.geometry.layer_frames(wave_lens, index))
        return Frames(torch.log1p(x.abs()), self.geometry.frames(wave_lens))
