"""data2vec: predict what a slow copy of the network makes of the frames that are hidden."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.objectives.base import Objective
from speechssl.objectives.context_teacher import ContextTeacher, Decay
from speechssl.objectives.health import deviation, health, moments, squares
from speechssl.objectives.masking import SpanMask, plan_masks
from speechssl.types import Batch, Loss, Progress, Sum


class Data2Vec(Objective):
    """Regression of a teacher's contextual frames at masked frames (arXiv 2202.03555, section 3).

    The target is the mean over the teacher's top blocks of what their feed-forward parts put out,
    each normalised over the utterance; the teacher sees the utterance unmasked and follows the
    student by moving average. Differs: masks are ragged (see SpanMask); the first update has the
    decay `ema.start`, where fairseq's has that of update 1.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are the base set-up of the paper for speech, as released."""

        mask: SpanMask = field(default_factory=lambda: SpanMask(min_masks=1))
        top_layers: int = 8  # whose mean is the target
        beta: float = 0.0  # where smooth L1 turns from squares to absolute values; 0: squares alone
        ema: Decay = field(default_factory=Decay)

        def __post_init__(self) -> None:
            if self.beta < 0:
                raise ConfigError(f"objective.beta: got {self.beta}, expected at least 0")

    needs: ClassVar = frozenset({"mask"})
    best_metric = (("explained", True),)
    has_teacher = True

    plan = staticmethod(plan_masks)

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        self.teacher = ContextTeacher(backbone, cfg.top_layers, cfg.ema, self.name)
        self.head = nn.Linear(backbone.dim, backbone.dim)

    def begin_step(self, progress: Progress) -> None:
        """The teacher's decay; before the first update it starts from the student's weights."""
        super().begin_step(progress)
        self.teacher.begin_step(self.backbone.encoder, progress.step)

    def after_step(self, progress: Progress) -> None:
        """The teacher follows the updated student."""
        self.teacher.follow(self.backbone.encoder, self.teacher.decay)

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Sum over frames of (M, D) of squares or smooth L1 over channels, over sqrt(D)."""
        if self.cfg.beta == 0:  # torch takes beta 0 for plain L1
            summed = (predicted - target).square().sum()
        else:
            summed = F.smooth_l1_loss(predicted, target, reduction="sum", beta=self.cfg.beta)
        return summed / math.sqrt(target.shape[1])

    def forward(self, batch: Batch) -> Loss:
        """Loss over the M masked frames of the batch; at evaluation also signs of collapse."""
        mask = batch.mask
        if mask is None:
            raise ValueError("data2vec needs a batch with a mask; see Objective.plan_fn")
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        with torch.no_grad():
            target = self.teacher.targets(self.backbone.project(z), mask).mean(0)  # (M, D)
        context = self.backbone.context(z, mask)
        predicted = self.head(context.x[mask]).to(target.dtype)
        masked_loss = self.distance(predicted, target)
        n = mask.sum()
        one = torch.ones((), device=n.device)
        logs = {
            "masked_loss": Sum(masked_loss.detach(), n),
            "zero_loss": Sum(self.distance(torch.zeros_like(target), target), n),
            "target_squares": Sum(squares(target), n),
            "pred_squares": Sum(squares(predicted), n),
            "ema_decay": Sum(one * self.teacher.decay, one),
            "mask_frac": Sum(n, z.lens.sum()),
        }
        if not self.training:
            logs |= moments(context)
        # The mask vector is part of the graph in every batch.
        return Loss(masked_loss + 0.0 * self.backbone.masked_spec_embed.sum(), n, logs)

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds target_var and pred_var (see `deviation`), explained, and at evaluation `health`.

        zero_loss is that of predicting zero, the mean of every channel, and explained the share of
        it that is saved. Healthy targets stay far above a target_var of 0.1.
        """
        scalars = super().summary(sums) | health(sums)
        for name in ("target", "pred"):
            if f"{name}_squares" in sums:
                scalars[f"{name}_var"] = deviation(sums[f"{name}_squares"])
        if "zero_loss" in scalars:
            scalars["explained"] = 1.0 - scalars["masked_loss"] / max(scalars["zero_loss"], 1e-9)
        return scalars

    def chance(self) -> dict[str, float]:
        """Predicting zero."""
        return {"explained": 0.0}
