"""BEST-RQ: name the random-projection code of what a masked frame sounds like."""

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
from speechssl.models.blocks.quantize import RandomQuantizer
from speechssl.objectives.base import Alarm, Objective
from speechssl.objectives.health import DEGENERATE, codes_in_use, health, moments
from speechssl.objectives.masking import SpanMask, plan_masks
from speechssl.objectives.mel_targets import MelTargets
from speechssl.types import Batch, Loss, Sum


class BestRQ(Objective):
    """Cross-entropy of frozen random-projection codes at masked frames (arXiv 2202.01855, sec. 3).

    The targets are log-mel frames of the clean waveform that the frame covers, stacked, every bin
    of zero mean and unit variance over the utterance. Differs: the network hears the waveform and
    its masked frames become the learnt mask vector, not noise; codebooks may be several, each with
    its own softmax (the loss is their mean).
    """

    @dataclass(frozen=True)
    class Config:
        """The mask hides 400 ms from 1 % of the 10 ms frames on, at 50 Hz frames, as published."""

        mask: SpanMask = field(default_factory=lambda: SpanMask(prob=0.4, length=20, min_masks=1))
        codebooks: int = 1
        codes: int = 8192
        code_dim: int = 16
        mel_bins: int = 80

        def __post_init__(self) -> None:
            least = {"codebooks": 1, "codes": 2, "code_dim": 1, "mel_bins": 1}
            for key, low in least.items():
                if getattr(self, key) < low:
                    raise ConfigError(
                        f"objective.{key}: got {getattr(self, key)}, expected at least {low}"
                    )

    needs: ClassVar = frozenset({"mask"})

    plan = staticmethod(plan_masks)

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        self.require_masking()
        self.mel = MelTargets(backbone.geometry, cfg.mel_bins, self.name)
        self.quantizer = RandomQuantizer(self.mel.dim, cfg.codebooks, cfg.codes, cfg.code_dim)
        self.head = nn.Linear(backbone.dim, cfg.codebooks * cfg.codes)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Codes of every frame, (B, T, K) int64; those of padding mean nothing."""
        x = self.mel(batch)  # (B, T, n)
        return self.quantizer(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def forward(self, batch: Batch) -> Loss:
        """Loss over the M masked frames of the batch; at evaluation also signs of collapse."""
        mask, cfg = batch.mask, self.cfg
        if mask is None:
            raise ValueError("bestrq needs a batch with a mask; see Objective.plan_fn")
        codes = self.targets(batch)[mask]  # (M, K)
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        context = self.backbone.context(z, mask)
        logits = self.head(context.x[mask]).float().unflatten(-1, (cfg.codebooks, cfg.codes))
        per_book = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")  # (M, K)
        masked_loss = per_book.sum() / cfg.codebooks
        n = mask.sum()
        hits = F.one_hot(codes, cfg.codes).sum(0)  # (K, V)
        right = (logits.detach().argmax(-1) == codes).float().mean(-1).sum()
        logs = {
            "masked_loss": Sum(masked_loss.detach(), n),
            "accuracy": Sum(right, n),
            "mask_frac": Sum(n, z.lens.sum()),
            "code_hist": Sum(hits, n),
        }
        # The mask vector and the head are part of the graph in every batch, masked or not.
        total = masked_loss + 0.0 * (self.backbone.masked_spec_embed.sum() + logits.sum())
        if not self.training:
            logs |= moments(context)
        return Loss(total, n, logs)

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds `codes_in_use`, and at evaluation `health`."""
        return super().summary(sums) | codes_in_use(sums) | health(sums)

    def alarms(self) -> tuple[Alarm, ...]:
        """Targets that are nearly all the same teach nothing."""
        return (DEGENERATE,)

    def chance(self) -> dict[str, float]:
        """Guessing among all codes; naming the commonest is right in `top_code_share` (logged)."""
        return {"masked_loss": math.log(self.cfg.codes), "accuracy": 1 / self.cfg.codes}
