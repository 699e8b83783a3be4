"""InfoNCE against other masked frames, without gathering copies of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def draw_negatives(
    counts: np.ndarray, num_negatives: int, rngs: Sequence[np.random.Generator]
) -> np.ndarray:
    """Negatives of M masked frames, (M, N) int64 positions among the masked frames of their row.

    Uniform with replacement over the other masked frames of the same utterance, never the frame
    itself. counts (B,) are masked frames per row, each 0 or at least 2 (else ValueError).
    """
    rows = []
    for count, rng in zip(counts, rngs, strict=True):
        if count == 0:
            continue
        if count < 2:
            raise ValueError(
                "an utterance with one masked frame has no negatives; expected 0 or 2+"
            )
        draws = rng.integers(0, count - 1, size=(count, num_negatives))
        rows.append(draws + (draws >= np.arange(count)[:, None]))
    if not rows:
        return np.zeros((0, num_negatives), dtype=np.int64)
    return np.concatenate(rows).astype(np.int64)


def draw_cross_negatives(
    counts: np.ndarray, num_negatives: int, rngs: Sequence[np.random.Generator]
) -> np.ndarray:
    """Negatives of M masked frames from other utterances, (M, K) int64 places among all M frames.

    Uniform with replacement over the masked frames of the other rows; -1 where there are none.
    counts (B,) are masked frames per row.
    """
    ends = np.cumsum(counts)
    total = int(counts.sum())
    rows = []
    for count, end, rng in zip(counts, ends, rngs, strict=True):
        if total == count:
            rows.append(np.full((count, num_negatives), -1))
            continue
        draws = rng.integers(0, total - count, size=(count, num_negatives))
        rows.append(draws + count * (draws >= end - count))
    return np.concatenate(rows).astype(np.int64)


def cosine_logits(
    predictions: Tensor,
    targets: Tensor,
    mask: Tensor,
    negatives: Tensor,
    codes: Tensor | None,
    temperature: float,
    cross: Tensor | None = None,
) -> Tensor:
    """Cosine similarities over `temperature` in fp32: (M, 1 + N + K), the positive first.

    predictions, targets (M, F) in the row-major order of `mask` (B, T); negatives (M, N) positions
    within the row; cross (M, K) places among all M frames, whose negative ones get -inf. So do,
    where `codes` (M, G) are given, negatives with the positive's own codes. One product per
    utterance over its unique frames replaces N gathered copies of vectors; one product of all
    with all, (M, M), serves `cross`.
    """
    rows, _ = mask.nonzero(as_tuple=True)
    counts = mask.sum(1)
    widest = int(counts.max())
    place = torch.arange(len(rows), device=mask.device) - (counts.cumsum(0) - counts)[rows]

    def padded(x: Tensor) -> Tensor:
        return x.new_zeros(mask.shape[0], widest, x.shape[-1]).index_put((rows, place), x)

    with torch.autocast(predictions.device.type, enabled=False):
        a = F.normalize(predictions.float(), dim=-1, eps=1e-8)
        y = F.normalize(targets.float(), dim=-1, eps=1e-8)
        scores = (padded(a) @ padded(y).transpose(1, 2))[rows, place] / temperature
        columns = torch.cat([place[:, None], negatives], dim=1)  # (M, 1 + N)
        logits = scores.gather(1, columns)
    if codes is not None:
        same = (padded(codes)[rows[:, None], columns[:, 1:]] == codes[:, None]).all(-1)
        logits[:, 1:] = logits[:, 1:].masked_fill(same, float("-inf"))
    if cross is None:
        return logits
    with torch.autocast(predictions.device.type, enabled=False):
        others = cross.clamp(min=0)
        far = (a @ y.T).gather(1, others) / temperature
    hidden = cross < 0
    if codes is not None:
        hidden = hidden | (codes[others] == codes[:, None]).all(-1)
    return torch.cat([logits, far.masked_fill(hidden, float("-inf"))], dim=1)


def accuracy_sum(logits: Tensor) -> Tensor:
    """How often the positive (column 0) wins; a row where all logits tie counts as lost."""
    best = logits.argmax(-1) == 0
    worst = logits.argmin(-1) == 0
    return (best & ~worst).sum()
