"""Strided convolution as a module that keeps sequences channels-last."""

from __future__ import annotations

from torch import Tensor, nn

from speechssl.kernels.conv import strided_conv


class StridedConv(nn.Conv1d):
    """`nn.Conv1d` without padding over (B, T, C_in) -> (B, T', C_out).

    A module of its own, rather than a call on a Conv1d's weight, because ZeRO stage 3 gathers the
    weights of a module when its `forward` is called and at no other time.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input` (B, T, C_in) with this layer's kernel and stride."""
        return strided_conv(input, self.weight, self.bias, self.stride[0])
