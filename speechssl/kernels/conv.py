"""Strided convolution over channels-last sequences as one matrix product.

A window of k frames of a contiguous (T, C) sequence is already a contiguous row of k * C numbers,
so the convolution is a matrix product over overlapping rows: no transposes, and the gradient
needs no generic scatter. Equals `torch.nn.functional.conv1d`, which the test holds it to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StridedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, stride: int, kernel: int) -> Tensor:
        ctx.save_for_backward(x, rows)
        ctx.stride, ctx.kernel = stride, kernel
        return _windows(x, kernel, stride) @ rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        x, rows = ctx.saved_tensors
        stride, kernel = ctx.stride, ctx.kernel
        batch, length, channels = x.shape
        flat = grad.reshape(-1, grad.shape[-1])
        grad_rows = None
        if ctx.needs_input_grad[1]:
            grad_rows = _windows(x, kernel, stride).reshape(flat.shape[0], -1).t() @ flat
        grad_x = None
        if ctx.needs_input_grad[0]:
            frames = grad.shape[1]
            parts = (flat @ rows.t()).view(batch, frames, kernel, channels)
            reach = max(length, frames * stride + kernel)
            full = x.new_zeros(batch, reach, channels)
            # Windows a stride apart do not overlap within one block of `stride` taps.
            for first in range(0, kernel, stride):
                width = min(stride, kernel - first)
                block = full[:, first : first + frames * stride]
                block = block.unflatten(1, (frames, stride))[:, :, :width]
                block += parts[:, :, first : first + width]
            grad_x = full[:, :length]
        return grad_x, grad_rows, None, None


def _windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, T, C) contiguous -> (B, T', kernel * C), a view with overlapping rows."""
    batch, length, channels = x.shape
    frames = (length - kernel) // stride + 1
    return x.as_strided(
        (batch, frames, kernel * channels), (length * channels, stride * channels, 1)
    )


def strided_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve x (B, T, C_in) with weight (C_out, C_in, k), unpadded -> (B, T', C_out).

    Raises ValueError when T is shorter than the kernel.
    """
    kernel = weight.shape[2]
    if x.shape[1] < kernel:
        raise ValueError(f"sequence of {x.shape[1]} frames is shorter than the kernel, {kernel}")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if torch.compiler.is_exporting():  # a graph for other machines has no place for strides
        return torch.nn.functional.conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)
    rows = weight.permute(2, 1, 0).reshape(-1, weight.shape[0])  # (k * C_in, C_out)
    y = _StridedConv.apply(x.contiguous(), rows, stride, kernel)
    return y if bias is None else y + bias.to(y.dtype)
