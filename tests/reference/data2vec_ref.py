"""Loss of data2vec, slowly: one frame and one channel at a time, in float64.

Written from arXiv 2202.03555, section 3, not from the library.
"""

from __future__ import annotations

from torch import Tensor


def normalised(frames: list[Tensor], eps: float = 1e-5) -> list[Tensor]:
    """The frames (D,) of one utterance, every channel with zero mean and unit variance."""
    mean = frames[0] * 0
    for frame in frames:
        mean = mean + frame / len(frames)
    variance = mean * 0
    for frame in frames:
        variance = variance + (frame - mean) ** 2 / len(frames)
    return [(frame - mean) / (variance + eps) ** 0.5 for frame in frames]


def targets(layers: list[list[Tensor]]) -> list[Tensor]:
    """For each frame of one utterance the mean of the normalised layers, each a list of frames."""
    parts = [normalised(frames) for frames in layers]
    return [sum(part[t] for part in parts) / len(parts) for t in range(len(parts[0]))]  # type: ignore[misc]


def frame_loss(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Squares (beta 0) or smooth L1 of the channels of one frame, over the root of their number."""
    total = predicted.sum() * 0
    for ours, wanted in zip(predicted, target, strict=True):
        distance = (ours - wanted).abs()
        if beta == 0:
            total = total + distance**2
        elif distance < beta:
            total = total + distance**2 / (2 * beta)
        else:
            total = total + distance - beta / 2
    return total / len(target) ** 0.5


def averaged(teacher: Tensor, student: Tensor, decay: float) -> Tensor:
    """The teacher's weights after an update."""
    return decay * teacher + (1 - decay) * student


def decay(step: int, start: float, end: float, steps: int) -> float:
    """Linear from start to end."""
    return end if step >= steps else start + (end - start) * step / steps
