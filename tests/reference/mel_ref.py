"""Log-mel targets and the line between visible frames, slowly: one value at a time, in float64."""

from __future__ import annotations

import math

from torch import Tensor


def standardised(mel: list[list[float]], least_std: float) -> list[list[float]]:
    """Frames (T, n) with zero mean and unit variance of each column over the utterance."""
    count, width = len(mel), len(mel[0])
    columns = []
    for column in range(width):
        values = [frame[column] for frame in mel]
        mean = sum(values) / count
        variance = sum((v - mean) ** 2 for v in values) / count
        columns.append([(v - mean) / max(math.sqrt(variance + 1e-12), least_std) for v in values])
    return [[columns[c][t] for c in range(width)] for t in range(count)]


def stacked(mel: Tensor, frames: int, per_frame: int) -> list[list[float]]:
    """Log-mel frames (F, bins) side by side, the last one again where there are too few."""
    rows = []
    for frame in range(frames):
        row: list[float] = []
        for part in range(per_frame):
            row += mel[min(frame * per_frame + part, len(mel) - 1)].tolist()
        rows.append(row)
    return rows


def line(mel: list[list[float]], hidden: list[bool]) -> list[list[float]]:
    """Frames (F, bins) of one utterance; hidden ones on a line between those to their sides."""
    seen = [t for t in range(len(mel)) if not hidden[t]]
    made = []
    for t, frame in enumerate(mel):
        before = [s for s in seen if s <= t]
        after = [s for s in seen if s >= t]
        if not seen:
            made.append([0.0] * len(frame))
        elif not before or not after:
            made.append(mel[after[0] if after else before[-1]])
        else:
            a, b = before[-1], after[0]
            share = (t - a) / max(b - a, 1)
            made.append([(1 - share) * x + share * y for x, y in zip(mel[a], mel[b], strict=True)])
    return made
