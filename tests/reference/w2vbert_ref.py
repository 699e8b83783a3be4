"""Masked prediction of w2v-BERT, slowly: one frame and one code at a time, in float64.

Written from arXiv 2108.06209, section 3, not from the library. The contrastive part is that of
wav2vec 2.0, in `wav2vec2_ref`.
"""

from __future__ import annotations

from torch import Tensor


def codes(local: Tensor, weight: Tensor, bias: Tensor, groups: int) -> list[int]:
    """The code of each group of a frame (C,): which row of the map (G V, C) scores most."""
    scores = [
        float(((row * local).sum() + b).detach()) for row, b in zip(weight, bias, strict=True)
    ]
    size = len(scores) // groups
    found = []
    for group in range(groups):
        own = scores[group * size : (group + 1) * size]
        found.append(own.index(max(own)))
    return found


def frame_loss(context: Tensor, weight: Tensor, bias: Tensor, wanted: list[int]) -> Tensor:
    """-log of the softmax at the code of each group, averaged over groups, for a frame (D,)."""
    size = len(weight) // len(wanted)
    total = context.new_zeros(())
    for group, code in enumerate(wanted):
        rows = range(group * size, (group + 1) * size)
        scores = [(weight[row] * context).sum() + bias[row] for row in rows]
        denominator = context.new_zeros(())
        for score in scores:
            denominator = denominator + score.exp()
        total = total + denominator.log() - scores[code]
    return total / len(wanted)
