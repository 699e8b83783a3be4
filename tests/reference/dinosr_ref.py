"""Codes and loss of DinoSR, slowly: one frame and one code at a time, in float64.

Written from arXiv 2305.10005, section 3, not from the library. Targets are those of data2vec
before their mean.
"""

from __future__ import annotations

from torch import Tensor


def nearest(frame: Tensor, codes: list[Tensor]) -> int:
    """Which code (D,) has the least squared distance."""
    distances = [float(((frame - code) ** 2).sum()) for code in codes]
    return distances.index(min(distances))


def cross_entropy(scores: Tensor, label: int) -> Tensor:
    """-log softmax(scores)[label] of one frame and layer."""
    total = scores.sum() * 0
    for score in scores:
        total = total + score.exp()
    return total.log() - scores[label]


def moved(
    sums: list[Tensor],
    counts: list[float],
    frames: list[Tensor],
    labels: list[int],
    decay: float,
) -> tuple[list[Tensor], list[float]]:
    """One codebook after an update that saw `frames`, named by `labels`."""
    sums, counts = list(sums), list(counts)
    for code in set(labels):
        own = [frame for frame, label in zip(frames, labels, strict=True) if label == code]
        together = own[0] * 0
        for frame in own:
            together = together + frame
        sums[code] = decay * sums[code] + (1 - decay) * together
        counts[code] = decay * counts[code] + (1 - decay) * len(own)
    return sums, counts
