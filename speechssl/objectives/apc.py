"""APC: say what is to be heard some frames from now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.objectives.ahead import must_look_back
from speechssl.objectives.base import Objective
from speechssl.objectives.health import health, moments
from speechssl.objectives.mel_targets import MelTargets
from speechssl.types import Batch, Loss, Plan, Sum


class APC(Objective):
    """Absolute error of the log-mel frames n frames ahead (arXiv 1904.03240, 1910.12607).

    A linear map of context frame t predicts what frame t + n sounds like; the loss is a sum over
    predicted frames (targets) of the mean over bins. Differs: the network hears the waveform, and
    a frame is several log-mel frames, predicted together; n is counted in such frames and never so
    small that prediction and target share a sample.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of APC.

        ahead_frames: n; None takes the least that shares no sample, 40 ms at 50 Hz frames.
        """

        ahead_frames: int | None = None
        mel_bins: int = 80

        def __post_init__(self) -> None:
            for key in ("ahead_frames", "mel_bins"):
                value = getattr(self, key)
                if value is not None and value < 1:
                    raise ConfigError(f"objective.{key}: got {value}, expected at least 1")

    best_metric = (("l1", False),)

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        must_look_back(backbone, self.name)
        geometry = backbone.geometry
        n = geometry.apart if cfg.ahead_frames is None else cfg.ahead_frames
        if n < geometry.apart:
            raise ConfigError(
                f"objective.ahead_frames: got {n}; a frame sees {geometry.receptive} samples and "
                f"its target begins {n * geometry.hop} samples after it does, expected at least "
                f"{geometry.apart} frames of {geometry.hop}, lest part of the target is seen"
            )
        super().__init__(backbone, replace(cfg, ahead_frames=n), classes)
        self.ahead = n
        self.mel = MelTargets(geometry, cfg.mel_bins, self.name)
        self.head = nn.Linear(backbone.dim, self.mel.dim)

    @staticmethod
    def plan(
        cfg: Any,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """Nothing is drawn; targets are the frames that have one n before them.

        `cfg` must have its distance resolved, as `APC(...).cfg` has.
        """
        if cfg.ahead_frames is None:
            raise ConfigError(
                "objective.ahead_frames: not resolved; plan with the `cfg` of a built objective"
            )
        return Plan(num_targets=int(np.maximum(frame_lens - cfg.ahead_frames, 0).sum()))

    def forward(self, batch: Batch) -> Loss:
        """Loss over the predicted frames of the batch; at evaluation also signs of collapse."""
        x, n = self.mel(batch), self.ahead  # (B, T, bins)
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        context = self.backbone.context(z)
        told = ~context.pad[:, n:]  # (B, T - n), True where frame t + n exists
        predicted = self.head(context.x[:, : told.shape[1]])
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        l1 = _distance(predicted, x[:, n:], told)
        count = told.sum()
        logs = {"l1": Sum(l1.detach(), count)} | self._baselines(x, told)
        if not self.training:
            logs |= moments(context)
        # Everything is part of the graph in every batch, with targets or without.
        total = l1 + 0.0 * (self.backbone.masked_spec_embed.sum() + predicted.sum())
        return Loss(total, count, logs)

    @torch.no_grad()
    def _baselines(self, x: Tensor, told: Tensor) -> dict[str, Sum]:
        """What is reached without learning; x (B, T, bins), told (B, T - n)."""
        n, count = self.ahead, told.sum()
        seen, later = x[:, : told.shape[1]], x[:, n:]
        both = told[..., None] * seen
        factor = (both * later).sum(1, keepdim=True) / both.square().sum(1, keepdim=True).clamp(
            min=torch.finfo(x.dtype).tiny
        )
        return {
            "mean_l1": Sum(_distance(torch.zeros_like(later), later, told), count),
            "copy_l1": Sum(_distance(seen, later, told), count),
            "linear_l1": Sum(_distance(factor * seen, later, told), count),
            "neighbour_l1": Sum(_distance(x[:, n - 1 : -1], later, told), count),
        }

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds how far the loss is from what needs no learning, and at evaluation `health`.

        Errors of the mean of the utterance (mean_l1), of the frame at t (copy_l1) and of its best
        multiple, a factor per bin fitted to the very utterance (linear_l1). to_copy and to_linear
        are the loss over the latter two: below 1 something is learnt. A loss below that of frame
        t + n - 1 (neighbour_l1) at a distance of several frames means that the future leaks in.
        """
        scalars = super().summary(sums)
        for name in ("copy", "linear"):
            if (level := scalars.get(f"{name}_l1", 0.0)) > 0:
                scalars[f"to_{name}"] = scalars["l1"] / level
        return scalars | health(sums)


def _distance(a: Tensor, b: Tensor, told: Tensor) -> Tensor:
    """Sum over frames that `told` (B, T) marks of the mean over bins of |a - b|, (B, T, bins)."""
    return (a - b.to(a.dtype)).abs().mean(-1).masked_fill(~told, 0.0).sum()
