"""DinoSR: name the codes that a slow copy of the network gives the frames that are hidden."""

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
from speechssl.models.blocks.centroids import MovingCentroids
from speechssl.models.blocks.quantize import perplexity
from speechssl.objectives.base import Objective
from speechssl.objectives.context_teacher import ContextTeacher, Decay
from speechssl.objectives.health import codes_in_use, health, moments
from speechssl.objectives.masking import SpanMask, plan_masks
from speechssl.types import Batch, Loss, Progress, Sum


class DinoSR(Objective):
    """Cross-entropy of a teacher's online clusters at masked frames (arXiv 2305.10005, section 3).

    The teacher is data2vec's. Each of its top blocks has a codebook that follows what the block
    puts out at masked frames; from its last block the student names the code of every one of them
    by a linear head, and the loss is their mean. Differs: masks are ragged (see SpanMask); the
    teacher follows to the end, where the released model freezes it half-way, together with the
    convolutional encoder; dead codes are counted, not revived.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are the base set-up of the paper."""

        mask: SpanMask = field(default_factory=lambda: SpanMask(prob=0.8, min_masks=1))
        top_layers: int = 8  # each with a codebook and a head
        codes: int = 256
        code_decay: float = 0.9  # of sums and counts, per update
        ema: Decay = field(default_factory=Decay)

        def __post_init__(self) -> None:
            if self.codes < 2:
                raise ConfigError(f"objective.codes: got {self.codes}, expected at least 2")
            if not 0.0 <= self.code_decay <= 1.0:
                raise ConfigError(
                    f"objective.code_decay: got {self.code_decay}, expected between 0 and 1"
                )

    needs: ClassVar = frozenset({"mask"})
    best_metric = (("known_nats", True),)
    has_teacher = True

    plan = staticmethod(plan_masks)

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        self.teacher = ContextTeacher(backbone, cfg.top_layers, cfg.ema, self.name)
        self.codebooks = MovingCentroids(cfg.top_layers, cfg.codes, backbone.dim)
        self.head = nn.Linear(backbone.dim, cfg.top_layers * cfg.codes)

    def begin_step(self, progress: Progress) -> None:
        """As data2vec; what an update that was skipped has seen is forgotten."""
        super().begin_step(progress)
        self.teacher.begin_step(self.backbone.encoder, progress.step)
        self.codebooks.clear()

    def after_step(self, progress: Progress) -> None:
        """The codebooks follow the frames of the update, and the teacher the updated student."""
        self.codebooks.update(self.cfg.code_decay)
        self.teacher.follow(self.backbone.encoder, self.teacher.decay)

    def forward(self, batch: Batch) -> Loss:
        """Loss over the M masked frames, which the codebooks see while training.

        At evaluation also signs of collapse.
        """
        mask, cfg = batch.mask, self.cfg
        if mask is None:
            raise ValueError("dinosr needs a batch with a mask; see Objective.plan_fn")
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        with torch.no_grad():
            heard = self.teacher.targets(self.backbone.project(z), mask)  # (K, M, D)
            codes = self.codebooks(heard)  # (M, K)
            if self.training and batch.num_targets:  # a filler is silence that nobody spoke
                self.codebooks.collect(heard, codes)
        context = self.backbone.context(z, mask)
        logits = self.head(context.x[mask])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits.unflatten(-1, (cfg.top_layers, cfg.codes))  # (M, K, V)
        per_layer = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum")
        masked_loss = per_layer / cfg.top_layers
        named = logits.detach().argmax(-1)  # (M, K)
        n = mask.sum()
        one = torch.ones((), device=n.device)
        logs = {
            "masked_loss": Sum(masked_loss.detach(), n),
            "accuracy": Sum((named == codes).float().mean(-1).sum(), n),
            "code_hist": Sum(self._histogram(codes), n),
            "pred_hist": Sum(self._histogram(named), n),
            "dead_codes": Sum(self.codebooks.num_dead(), one * codes.shape[1] * cfg.codes),
            "ema_decay": Sum(one * self.teacher.decay, one),
            "mask_frac": Sum(n, z.lens.sum()),
        }
        if not self.training:
            logs |= moments(context)
        # The mask vector and the head are part of the graph in every batch, masked or not.
        total = masked_loss + 0.0 * (self.backbone.masked_spec_embed.sum() + logits.sum())
        return Loss(total, n, logs)

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds `codes_in_use` with target_ppl for code_ppl, pred_ppl, and at evaluation `health`.

        target_ppl and pred_ppl are perplexities of the teacher's codes and of those the student
        names, means over layers, of V. known_nats is what the student knows of a frame's code
        beyond how often each occurs: mean entropy of the codes less the loss. It is 0 where all
        frames have one code, though the loss is 0 as well. dead_codes is a share of all codes.
        """
        scalars = super().summary(sums) | codes_in_use(sums) | health(sums)
        if "code_hist" in sums:
            scalars["target_ppl"] = scalars.pop("code_ppl")
            hist = sums["code_hist"].total
            entropy = sum(math.log(perplexity(layer)) for layer in hist) / len(hist)
            scalars["known_nats"] = entropy - scalars["masked_loss"]
        if "pred_hist" in sums:
            hist = sums["pred_hist"].total
            scalars["pred_ppl"] = perplexity(hist) / len(hist)
        return scalars

    def chance(self) -> dict[str, float]:
        """Guessing among all codes; naming the commonest is right in `top_code_share` (logged)."""
        levels = {"masked_loss": math.log(self.cfg.codes), "accuracy": 1 / self.cfg.codes}
        return levels | {"known_nats": 0.0}

    def _histogram(self, codes: Tensor) -> Tensor:
        """Codes (M, K) -> how often each occurs, (K, V) int64."""
        layers, size = self.cfg.top_layers, self.cfg.codes
        offsets = size * torch.arange(layers, device=codes.device)
        hits = torch.bincount((codes + offsets).flatten(), minlength=layers * size)
        return hits.view(layers, size)
