"""A teacher that follows its student: an exponential moving average of weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class Teacher(nn.Module):
    """A copy of `student` in fp32 that no gradient reaches and no mode changes: always in eval.

    Its weights are saved with the model. Of a ZeRO stage 3 student there is no whole weight to
    follow; objectives with a teacher say so by `has_teacher`.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(student).float().requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode: a teacher has neither dropout nor LayerDrop."""
        return super().train(False)

    @torch.no_grad()
    def copy(self, student: nn.Module) -> None:
        """Take the student's weights and buffers as they are."""
        self.network.load_state_dict(student.state_dict())

    @torch.no_grad()
    def follow(self, student: nn.Module, decay: float) -> None:
        """Weights <- decay * weights + (1 - decay) * the student's; buffers are copied."""
        for mine, theirs in zip(self.network.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs.detach().to(mine.dtype), 1.0 - decay)
        for mine, theirs in zip(self.network.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)


def annealed(start: float, end: float, steps: int, step: int) -> float:
    """Decay of update `step`: linear from `start` to `end` over `steps` updates, then `end`.

    arXiv 2202.03555, section 3.1.
    """
    return end if step >= steps else end - (end - start) * (1.0 - step / steps)
