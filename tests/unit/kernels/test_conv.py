"""The matrix-product convolution equals torch's."""

import pytest
import torch
import torch.nn.functional as F

from speechssl.kernels.conv import strided_conv

SHAPES = [(10, 5), (8, 4), (4, 2), (3, 2), (2, 2), (3, 1), (1, 1), (2, 3)]


@pytest.mark.parametrize(("kernel", "stride"), SHAPES)
@pytest.mark.parametrize("length", [17, 53])
def test_equals_conv1d_with_gradients(kernel: int, stride: int, length: int):
    x = torch.randn(2, length, 6, dtype=torch.double, requires_grad=True)
    weight = torch.randn(7, 6, kernel, dtype=torch.double, requires_grad=True)
    bias = torch.randn(7, dtype=torch.double, requires_grad=True)
    ours = strided_conv(x, weight, bias, stride)
    theirs = F.conv1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    up = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight, bias), up),
        torch.autograd.grad(theirs, (x, weight, bias), up),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_takes_a_transposed_input():
    x = torch.randn(2, 4, 20).transpose(1, 2)
    weight = torch.randn(5, 4, 3)
    theirs = F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2)
    torch.testing.assert_close(strided_conv(x, weight, None, 2), theirs)


def test_autocast_gives_half_precision_close_to_full():
    x, weight = torch.randn(2, 40, 16), torch.randn(8, 16, 3, requires_grad=True)
    full = strided_conv(x, weight, None, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = strided_conv(x, weight, None, 2)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.3, rtol=0.02)
    half.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_too_short_is_an_error():
    with pytest.raises(ValueError, match="shorter than the kernel"):
        strided_conv(torch.zeros(1, 2, 1), torch.zeros(1, 1, 3), None, 1)
