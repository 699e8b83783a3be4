"""SimCLR: two segments of one utterance find each other among those of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.blocks.pool import pool
from speechssl.objectives.base import Alarm, Objective
from speechssl.objectives.health import health, moments
from speechssl.types import Batch, Frames, Loss, Plan, Sum


class SimCLR(Objective):
    """NT-Xent over the 2 N segments of N utterances (arXiv 2002.05709, eq. 1, algorithm 1).

    A segment's embedding is the mean of its contextual frames; the loss reads it through a
    projector, downstream work does not. The two segments never overlap, so that what they share is
    who speaks, where and into what. Differs: segments are the only augmentation, and the projector
    has no batch norm, which tells segments of a batch about each other. Negatives come from the
    micro-batch of one rank: `data.batch_sec` says how many.
    """

    @dataclass(frozen=True)
    class Config:
        """Two seconds at 50 Hz and the published projector; speaker models go without one."""

        view_frames: int = 100  # longest segment; two of them where the utterance has the length
        temperature: float = 0.1
        projector: tuple[int, ...] = (2048, 128)  # widths, ReLU between; empty: none

        def __post_init__(self) -> None:
            if self.view_frames < 1:
                raise ConfigError(
                    f"objective.view_frames: got {self.view_frames}, expected at least 1"
                )
            if self.temperature <= 0:
                raise ConfigError(
                    f"objective.temperature: got {self.temperature}, expected above 0"
                )
            if any(width < 1 for width in self.projector):
                raise ConfigError(
                    f"objective.projector: got {self.projector}, expected widths of at least 1"
                )

    needs: ClassVar = frozenset({"views"})
    best_metric = (("contrastive", False),)

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        widths = (backbone.dim, *cfg.projector)
        maps: list[nn.Module] = []
        for before, after in pairwise(widths):
            maps += [nn.ReLU()] if maps else []
            maps.append(nn.Linear(before, after))
        self.projector = nn.Sequential(*maps)

    @staticmethod
    def plan(
        cfg: Any,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """Views (B, 2, 2); targets are segments. Utterances of one frame have none.

        A single utterance has no negatives, so its segments are left out as well.
        """
        views = np.zeros((len(frame_lens), 2, 2), np.int64)
        if (np.asarray(frame_lens) >= 2).sum() < 2:
            return Plan(num_targets=0, views=views)
        for row, (total, rng) in enumerate(zip(frame_lens, rngs, strict=True)):
            frames = min(cfg.view_frames, int(total) // 2)
            if frames:
                first = rng.integers(0, total - 2 * frames + 1)
                second = rng.integers(first + frames, total - frames + 1)
                views[row] = [[first, frames], [second, frames]]
        return Plan(num_targets=int((views[:, :, 1] > 0).sum()), views=views)

    def embed(self, batch: Batch) -> tuple[Tensor, Frames]:
        """Projected embeddings (2 B, E) of the segments, those of one utterance in turn; frames."""
        if batch.views is None:
            raise ValueError("simclr needs a batch with views; see Objective.plan_fn")
        geometry = self.backbone.geometry
        first, frames = batch.views.flatten(0, 1).unbind(-1)  # (2 B,)
        lens = torch.where(frames > 0, geometry.receptive + (frames - 1) * geometry.hop, 0)
        offsets = torch.arange(max(int(lens.max()), geometry.receptive), device=lens.device)
        places = (first[:, None] * geometry.hop + offsets).clamp(max=batch.wave.shape[1] - 1)
        wave = batch.wave.repeat_interleave(2, 0).gather(1, places)
        context = self.backbone(wave.masked_fill(offsets >= lens[:, None], 0.0), lens)
        return self.projector(pool(context.x, context.pad)), context

    def forward(self, batch: Batch) -> Loss:
        """Loss over the segments of the batch; at evaluation also signs of collapse."""
        embedded, context = self.embed(batch)
        dtype = torch.promote_types(embedded.dtype, torch.float32)
        e = F.normalize(embedded.to(dtype), dim=-1, eps=1e-8)
        there = context.lens > 0  # (2 B,)
        n = there.sum()
        itself = torch.eye(len(e), dtype=torch.bool, device=e.device)
        others = there[None, :] & ~itself
        sibling = torch.arange(len(e), device=e.device) ^ 1
        with torch.autocast(e.device.type, enabled=False):
            cosines = e @ e.T
        logits = (cosines / self.cfg.temperature).masked_fill(~others, float("-inf"))[there]
        contrastive = F.cross_entropy(logits, sibling[there], reduction="sum")
        # Everything is part of the graph in every batch, with segments or without.
        total = contrastive.float() + 0.0 * e.sum().float()
        if self.backbone.feature_projection is not None:  # where there is a mask vector
            total = total + 0.0 * self.backbone.masked_spec_embed.sum()
        with torch.no_grad():
            alike = cosines[there, sibling[there]].sum()
            pairs = others[there].sum() - n
            logs = {
                "contrastive": Sum(contrastive.detach(), n),
                "collapsed_loss": Sum(n * (n - 1).clamp(min=1).float().log(), n),
                "accuracy": Sum((logits.argmax(-1) == sibling[there]).sum(), n),
                "sibling_cos": Sum(alike, n),
                "other_cos": Sum(cosines[there][others[there]].sum() - alike, pairs),
            }
            if not self.training:
                logs |= moments(context)
        return Loss(total, n, logs)

    def alarms(self) -> tuple[Alarm, ...]:
        """Embeddings of different utterances must lie apart."""
        return (Alarm("other_cos", "all embeddings are one", high=0.99),)

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds signs of collapse; collapsed_loss, ln(2 N - 1), is that of equal embeddings."""
        return super().summary(sums) | health(sums)
