"""Weighted sum of layers and pooling over time."""

import pytest
import torch

from speechssl.downstream.readout import weighted_sum
from speechssl.models.blocks.pool import pool
from speechssl.types import Frames


def padding(lens, frames):
    return torch.arange(frames)[None] >= torch.tensor(lens)[:, None]


def frames(*states, lens=(5, 3)):
    return Frames(states[-1], torch.tensor(lens), states)


def test_zero_weights_are_the_mean_of_the_states():
    states = torch.randn(3, 2, 5, 4).unbind(0)
    torch.testing.assert_close(weighted_sum(frames(*states), torch.zeros(3)), sum(states) / 3)


def test_large_weight_picks_its_state_and_layer_norm_evens_levels():
    states = frames(torch.randn(2, 5, 4) * 100, torch.randn(2, 5, 4))
    chosen = weighted_sum(states, torch.tensor([-50.0, 50.0]))
    torch.testing.assert_close(chosen, states.layers[1])
    even = weighted_sum(states, torch.tensor([50.0, -50.0]), "layer")
    torch.testing.assert_close(even.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(even.std(-1, unbiased=False), torch.ones(2, 5), atol=1e-3, rtol=0)


def test_time_norm_takes_mean_and_spread_from_valid_frames_alone():
    state = torch.randn(2, 5, 4) * 3 + 7
    state[1, 3:] = float("nan")  # even garbage must not leak
    summed = weighted_sum(frames(state), torch.zeros(1), "time")
    for row, length in enumerate((5, 3)):
        valid = state[row, :length]
        expected = (valid - valid.mean(0)) / valid.std(0, unbiased=False)
        torch.testing.assert_close(summed[row, :length], expected, atol=1e-5, rtol=1e-5)
    assert not summed[1, 3:].any()


def test_time_norm_is_blind_to_masked_frames():
    state = torch.randn(2, 5, 4)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 1:3] = True
    loud = state.clone()
    loud[mask] = 1000.0
    got = weighted_sum(frames(loud), torch.zeros(1), "time", mask)
    seen = torch.tensor([0, 3, 4])
    expected = state[0, seen] - state[0, seen].mean(0)
    expected = expected / expected.square().mean(0).sqrt()
    torch.testing.assert_close(got[0, seen], expected, atol=1e-5, rtol=1e-5)
    assert got[0, 1:3].abs().min() > 10  # moved by the same shift and scale


def test_time_norm_of_a_constant_channel_is_zero_with_a_finite_gradient():
    state = torch.randn(2, 5, 4)
    state[:, :, 1] = 3.0
    state.requires_grad_()
    summed = weighted_sum(frames(state), torch.zeros(1), "time")
    assert not summed[:, :, 1].any()
    (summed * torch.randn(2, 5, 4)).sum().backward()
    assert state.grad.isfinite().all()


def test_weighted_sum_wants_one_weight_a_state():
    with pytest.raises(ValueError, match="2 states for 3 weights"):
        weighted_sum(frames(*[torch.zeros(2, 5, 1)] * 2), torch.zeros(3))


@pytest.mark.parametrize("kind", ["mean", "mean_std"])
def test_pooling_ignores_padding(kind):
    x = torch.randn(2, 6, 3)
    pad = padding([4, 6], 6)
    alone = pool(x[:1, :4], padding([4], 4), kind)
    x[0, 4:] = float("nan")  # even garbage must not leak
    torch.testing.assert_close(pool(x, pad, kind)[:1], alone)


def test_pooling_is_mean_then_unbiased_deviation():
    x = torch.randn(1, 9, 3)
    got = pool(x, padding([9], 9), "mean_std")
    torch.testing.assert_close(got[:, :3], x.mean(1))
    torch.testing.assert_close(got[:, 3:], x.std(1), atol=1e-5, rtol=1e-5)


def test_one_frame_or_none_stays_finite_with_gradient():
    x = torch.randn(2, 3, 2, requires_grad=True)
    got = pool(x, padding([1, 0], 3), "mean_std")
    got.sum().backward()
    assert got.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
