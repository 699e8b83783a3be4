"""Targets and losses of BEST-RQ, slowly: one frame, one codebook, one pair at a time, in float64.

Written from arXiv 2202.01855, section 3, and arXiv 2004.11362, eq. 2, not from the library.
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


def levelled(mel: list[Tensor]) -> list[Tensor]:
    """Stacked frames (n,) of one utterance less the mean of all their bins."""
    mean = sum(float(frame.sum()) for frame in mel) / sum(len(frame) for frame in mel)
    return [frame - mean for frame in mel]


def code(frame: Tensor, projection: Tensor, codebook: Tensor) -> int:
    """Index of the codebook row (V, d) nearest to the projected frame once it has length 1."""
    v = torch.stack([(projection[:, j] * frame).sum() for j in range(projection.shape[1])])
    v = v / v.square().sum().sqrt()
    distances = [float((v - row).square().sum()) for row in codebook]
    return distances.index(min(distances))


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    """-log softmax(logits)[target] of one frame (V,)."""
    return torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[target]


def utterance_loss(vectors: Tensor, rows: list[int], temperature: float) -> Tensor:
    """Sum over frames of the mean over partners of -log softmax; vectors (M, F)."""
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(rows):
        partners = [j for j, other in enumerate(rows) if other == row and j != i]
        others = [j for j, other in enumerate(rows) if other != row]
        if not partners or not others:
            continue

        def score(j: int, i: int = i) -> Tensor:
            a, b = vectors[i], vectors[j]
            return (a @ b) / (a.norm() * b.norm()) / temperature

        everyone = torch.stack([score(j) for j in range(len(rows)) if j != i]).logsumexp(0)
        total = total + sum(everyone - score(j) for j in partners) / len(partners)
    return total
