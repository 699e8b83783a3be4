"""MaskedGroupNorm: torch's GroupNorm where nothing is padded, blind to padding where it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speechssl.models.blocks.norms import MaskedGroupNorm, standardise


def _pair(groups: int, channels: int, dtype: torch.dtype) -> tuple[MaskedGroupNorm, nn.GroupNorm]:
    torch.manual_seed(0)
    ours, theirs = MaskedGroupNorm(groups, channels), nn.GroupNorm(groups, channels)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_equals_torch_without_padding(groups: int) -> None:
    ours, theirs = _pair(groups, 12, torch.float64)
    x = torch.randn(3, 17, 12, dtype=torch.float64) * 2 + 5
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    left = ours(a, torch.full((3,), 17))
    right = theirs(b.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    upstream = torch.randn_like(left)
    left.backward(upstream)
    right.backward(upstream)
    torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_padding_changes_neither_values_nor_gradients(groups: int) -> None:
    ours, _ = _pair(groups, 12, torch.float32)
    alone = torch.randn(1, 9, 12)
    padded = torch.cat([alone, torch.full((1, 8, 12), 1e4)], 1)
    both = torch.cat([padded, torch.randn(1, 17, 12)]).requires_grad_()
    alone.requires_grad_()
    expected, got = ours(alone, torch.tensor([9])), ours(both, torch.tensor([9, 17]))
    torch.testing.assert_close(got[:1, :9], expected, rtol=0, atol=1e-6)
    expected.square().sum().backward()
    got[:1, :9].square().sum().backward()
    assert both.grad is not None
    torch.testing.assert_close(both.grad[:1, :9], alone.grad, rtol=1e-4, atol=1e-5)
    assert both.grad[0, 9:].abs().max() == 0
    assert both.grad[1].abs().max() == 0


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_what_lies_in_the_padding_never_gets_out(junk: float) -> None:
    ours, _ = _pair(12, 12, torch.float32)
    x = torch.randn(1, 6, 12)
    x[:, 4:] = junk
    x.requires_grad_()
    y = ours(x, torch.tensor([4]))
    assert y.isfinite().all()
    y[:, :4].square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_rows_without_frames_are_finite() -> None:
    ours, _ = _pair(3, 12, torch.float32)
    x = torch.randn(2, 5, 12, requires_grad=True)
    y = ours(x, torch.tensor([0, 5]))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_constant_channel_and_a_large_offset_are_harmless() -> None:
    ours = MaskedGroupNorm(4, 4)
    x = torch.randn(1, 50, 4, dtype=torch.float64)
    x[..., 0] = 7.0
    shifted = ours((x + 300).float(), torch.tensor([50]))
    assert shifted[..., 0].abs().max() < 1e-5
    still = ours(x.float(), torch.tensor([50]))
    torch.testing.assert_close(shifted[..., 1:], still[..., 1:], rtol=0, atol=2e-4)


def test_half_precision_input_keeps_its_dtype_and_fp32_statistics() -> None:
    ours = MaskedGroupNorm(1, 8)
    x = torch.randn(2, 30, 8)
    y = ours(x.bfloat16(), torch.tensor([30, 20]))
    assert y.dtype == torch.bfloat16
    exact = ours(x.bfloat16().float(), torch.tensor([30, 20]))
    torch.testing.assert_close(y.float(), exact, rtol=1e-2, atol=1e-2)


def test_channels_must_divide() -> None:
    with pytest.raises(ValueError, match="10 channels do not divide into 3 groups"):
        MaskedGroupNorm(3, 10)


def test_standardise_with_an_eps_is_instance_norm_of_the_valid_frames() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 5, dtype=torch.float64) * 3e-3  # variances near the eps
    got = standardise(x, torch.tensor([6, 9]), eps=1e-5)
    for row, frames in enumerate((6, 9)):
        alone = x[row, :frames].T[None]
        wanted = torch.nn.functional.instance_norm(alone, eps=1e-5)[0].T
        torch.testing.assert_close(got[row, :frames], wanted)
    assert not got[0, 6:].any()
