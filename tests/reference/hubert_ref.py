"""Loss of HuBERT, slowly: one frame and one class at a time, in float64.

Written from arXiv 2106.07447, section II (eq. 3), not from the library.
"""

from __future__ import annotations

import math

from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of two vectors."""
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def frame_loss(projected: Tensor, embeddings: Tensor, label: int, temperature: float) -> Tensor:
    """-log p(label | frame), p proportional to exp(cosine / temperature)."""
    scores = [cosine(projected, row) / temperature for row in embeddings]
    total = scores[0].exp()
    for score in scores[1:]:
        total = total + score.exp()
    return total.log() - scores[label]


def label_index(frame: int, part: int, parts: int, hop: int, rate_hz: int, label_hz: float) -> int:
    """Which label is the one of a part of a frame: the one that has begun last."""
    seconds = (frame + part / parts) * hop / rate_hz
    return math.floor(seconds * label_hz + 1e-9)
