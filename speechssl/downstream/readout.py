"""From the states of a backbone to one sequence."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.models.blocks.norms import standardise
from speechssl.types import Frames

#: What is done to each state of a weighted sum: nothing, layer norm over its channels, or
#: standardisation of its channels over the frames of the utterance (which takes the mean away; for
#: networks without dropout, whose noise on a mean would be spread over time).
StateNorm = Literal["none", "layer", "time"]


def weighted_sum(
    frames: Frames, alpha: Tensor, norm: StateNorm = "none", mask: Tensor | None = None
) -> Tensor:
    """sum_l softmax(alpha)_l states_l of `frames.layers` (B, T, D), alpha (L + 1,) -> (B, T, D).

    `mask` (B, T) says which frames were hidden from the network: `time` takes its statistics from
    the others, so that they are those of evaluation, where nothing is hidden.

    Source: SUPERB (arXiv 2105.01051), section 3. Differs: a `norm` without learnt parameters may
    come first. Raw states of a pre-norm network have a large common mean, on which a linear head
    learns slowly.
    """
    states = frames.layers
    if not states or len(states) != len(alpha):
        raise ValueError(
            f"got {len(states)} states for {len(alpha)} weights; ask the backbone for layers=True"
        )
    total: Tensor | None = None
    for state, weight in zip(states, torch.softmax(alpha.float(), 0), strict=True):
        if norm == "layer":
            state = F.layer_norm(state, state.shape[-1:])
        elif norm == "time":
            state = standardise(state.float(), frames.lens, hidden=mask).to(state.dtype)
        term = weight.to(state.dtype) * state
        total = term if total is None else total + term
    assert total is not None
    return total
