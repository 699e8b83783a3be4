"""NT-Xent, slowly: one segment at a time, in float64.

Written from arXiv 2002.05709, equation 1, not from the library.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two vectors (E,)."""
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def nt_xent(pairs: list[tuple[Tensor, Tensor]], temperature: float) -> tuple[Tensor, int]:
    """Summed loss of the two views (E,) of each utterance, and how many find their sibling."""
    total, right = torch.zeros((), dtype=torch.float64), 0
    everything = [(i, v) for i in range(len(pairs)) for v in range(2)]
    for i, v in everything:
        scores = {
            (j, w): cosine(pairs[i][v], pairs[j][w]) / temperature
            for j, w in everything
            if (j, w) != (i, v)
        }
        wanted = scores[i, 1 - v]
        total = total - (wanted - torch.stack(list(scores.values())).exp().sum().log())
        right += max(scores, key=lambda place: float(scores[place].detach())) == (i, 1 - v)
    return total, right
