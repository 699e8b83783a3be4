"""Targets and loss of BEST-RQ, slowly: one frame and one codebook at a time, in float64.

Written from arXiv 2202.01855, section 3, not from the library.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalised(mel: list[Tensor], least_std: float) -> list[Tensor]:
    """Stacked frames (n,) of one utterance with every bin at mean 0 and deviation 1."""
    count = len(mel)
    mean = sum(mel) / count  # type: ignore[operator]
    variance = sum((frame - mean) ** 2 for frame in mel) / count  # type: ignore[operator]
    std = torch.maximum(torch.as_tensor(variance).sqrt(), torch.tensor(least_std).double())
    return [(frame - mean) / std for frame in mel]


def code(frame: Tensor, projection: Tensor, codebook: Tensor) -> int:
    """Index of the codebook row (V, d) nearest to the projected frame once it has length 1."""
    v = torch.stack([(projection[:, j] * frame).sum() for j in range(projection.shape[1])])
    v = v / v.square().sum().sqrt()
    distances = [float((v - row).square().sum()) for row in codebook]
    return distances.index(min(distances))


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    """-log softmax(logits)[target] of one frame (V,)."""
    return torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[target]
