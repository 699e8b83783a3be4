"""The wav2vec (v1) loss, slowly: one frame, one step, one negative at a time, in float64.

Written from arXiv 1904.05862, section 2.2, equation 1, not from the library.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def loss(
    z: Sequence[Tensor],
    c: Sequence[Tensor],
    matrices: Tensor,
    bias: Tensor,
    negatives: Sequence[Sequence[Sequence[int]]],
    offset: int,
    *,
    softmax: bool = False,
    balanced: bool = False,
) -> tuple[Tensor, int]:
    """Summed loss and number of positives.

    z, c hold one (T_b, C) and (T_b, D) tensor per utterance; matrices (K, C, D), bias (C,);
    negatives[b][t] lists frames of utterance b that stand in for its frame t.
    """
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for utterance in range(len(z)):
        length = z[utterance].shape[0]
        for step in range(matrices.shape[0]):
            for now in range(length):
                future = now + offset + step
                if future >= length:
                    continue
                count += 1
                guess = matrices[step] @ c[utterance][now] + bias
                right = guess @ z[utterance][future]
                wrong = [guess @ z[utterance][other] for other in negatives[utterance][future]]
                if softmax:
                    every = torch.stack([right, *wrong])
                    total = total - (right - torch.log(torch.exp(every).sum()))
                    continue
                total = total - torch.log(1 / (1 + torch.exp(-right)))
                weight = 1 / len(wrong) if balanced else 1.0
                for score in wrong:
                    total = total - weight * torch.log(1 / (1 + torch.exp(score)))
    return total, count
