"""wav2vec 2.0: tell the quantised target of a masked frame from distractors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.blocks.quantize import GumbelQuantizer, Quantized, gumbel_noise, perplexity
from speechssl.objectives.base import Alarm, Objective
from speechssl.objectives.contrast import (
    accuracy_sum,
    cosine_logits,
    draw_cross_negatives,
    draw_negatives,
)
from speechssl.objectives.health import health, moments
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.penalty import mean_square
from speechssl.types import Batch, Frames, Loss, Plan, Progress, Sum


class Wav2Vec2(Objective):
    """Contrastive loss over masked frames with learnt discrete targets (arXiv 2006.11477, sec. 2).

    Differs: all masked frames of all rows are used (fairseq trims rows to the same count);
    the feature penalty is averaged per utterance and weighted by its masked frames, so that it
    adds up over any split of a batch. The diversity term is taken over the micro-batch, as
    everywhere, and so are cross negatives: these two depend on how a batch is split.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are the paper's base set-up; the schedule counts optimizer updates."""

        mask: SpanMask = field(default_factory=SpanMask)
        num_negatives: int = 100
        cross_negatives: int = 0  # from other utterances of the micro-batch: tells speakers apart
        logit_temperature: float = 0.1
        final_dim: int = 256
        groups: int = 2
        codes: int = 320
        code_dim: int = 256
        code_init_std: float = 1.0  # of the weights that choose codes; see GumbelQuantizer
        temperature_start: float = 2.0
        temperature_end: float = 0.5
        temperature_decay: float = 0.999995  # per update
        diversity_weight: float = 0.1
        penalty_weight: float = 10.0

        def __post_init__(self) -> None:
            if self.code_dim % self.groups:
                raise ConfigError(
                    f"objective.code_dim {self.code_dim} must be a multiple of groups {self.groups}"
                )
            if self.num_negatives < 1 or self.cross_negatives < 0:
                raise ConfigError(
                    f"objective: got num_negatives {self.num_negatives} and cross_negatives "
                    f"{self.cross_negatives}, expected at least 1 and at least 0"
                )
            if self.code_init_std <= 0:
                raise ConfigError(f"objective.code_init_std {self.code_init_std} must be above 0")

    needs: ClassVar = frozenset({"mask", "negatives"})
    best_metric = (("contrastive", False),)

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        self.require_masking()
        channels = backbone.cfg.conv_dims[-1]
        self.quantizer = GumbelQuantizer(
            channels, cfg.groups, cfg.codes, cfg.code_dim, init_std=cfg.code_init_std
        )
        self.project_q = nn.Linear(cfg.code_dim, cfg.final_dim)
        self.project_hid = nn.Linear(backbone.dim, cfg.final_dim)
        self.temperature = cfg.temperature_start

    @staticmethod
    def plan(
        cfg: Any,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """Masks (B, T), negatives (M, N + K), the K from other rows; targets are masked frames."""
        mask = cfg.mask.draw(frame_lens, rngs)
        counts = mask.sum(1)
        mask[counts < 2] = False  # no negatives to be had
        counts = mask.sum(1)
        negatives = draw_negatives(counts, cfg.num_negatives, rngs)
        if cfg.cross_negatives:
            cross = draw_cross_negatives(counts, cfg.cross_negatives, rngs)
            negatives = np.concatenate([negatives, cross], axis=1)
        return Plan(num_targets=int(counts.sum()), mask=mask, negatives=negatives)

    def begin_step(self, progress: Progress) -> None:
        """Gumbel temperature of the coming update, a pure function of the step."""
        super().begin_step(progress)
        cfg = self.cfg
        decayed = cfg.temperature_start * cfg.temperature_decay**progress.step
        self.temperature = max(cfg.temperature_end, decayed)

    def forward(self, batch: Batch) -> Loss:
        """Loss over the M masked frames of the batch; at evaluation also signs of collapse."""
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        local = self.backbone.features(z)
        context = self.backbone.context(z, batch.mask)
        loss, _ = self.contrast(batch, z, local, context.x)
        if not self.training:
            loss.logs |= moments(context)
        return loss

    def contrast(self, batch: Batch, z: Frames, local: Tensor, x: Tensor) -> tuple[Loss, Quantized]:
        """The loss for contextual frames x (B, T, D), and the M quantised targets.

        Local features of the unmasked signal: z raw, `local` (B, T, C) as quantisers read them.
        """
        mask, negatives = batch.mask, batch.negatives
        if mask is None or negatives is None:
            raise ValueError(
                f"{self.name} needs a batch with mask and negatives; see Objective.plan_fn"
            )
        masked, c = local[mask], x[mask]  # (M, C), (M, D)
        counts = mask.sum(1)
        noise = None
        if self.training:
            shape = (self.cfg.groups, self.cfg.codes)
            noise = gumbel_noise(batch.seeds, counts.tolist(), shape, masked)
        q = self.quantizer(masked, self.temperature, noise)
        y, a = self.project_q(q.vectors), self.project_hid(c)

        contrastive = c.new_zeros((), dtype=torch.float32) * (a.sum() + y.sum()).float()
        correct = neg_is_pos = torch.zeros((), device=c.device)
        if len(a):
            own, cross = negatives.split([self.cfg.num_negatives, self.cfg.cross_negatives], 1)
            logits = cosine_logits(
                a,
                y,
                mask,
                own,
                q.codes,
                self.cfg.logit_temperature,
                cross if self.cfg.cross_negatives else None,
            )
            target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
            contrastive = F.cross_entropy(logits, target, reduction="sum")
            correct = accuracy_sum(logits.detach())
            neg_is_pos = logits[:, 1 : 1 + own.shape[1]].isinf().float().mean(-1).sum()
        n = counts.sum()
        probs = q.probs.mean(0) if len(a) else q.probs.sum(0)
        diversity = self._diversity(probs) * n
        penalty = (mean_square(z) * counts).sum()
        total = (
            contrastive
            + self.cfg.diversity_weight * diversity
            + self.cfg.penalty_weight * penalty
            + 0.0 * self.backbone.masked_spec_embed.sum()  # part of the graph in every batch
        )
        hits = F.one_hot(q.codes, self.cfg.codes).sum(0)
        one = torch.ones((), device=c.device)
        logs = {
            "contrastive": Sum(contrastive.detach(), n),
            "diversity": Sum(diversity.detach(), n),
            "penalty": Sum(penalty.detach(), n),
            "accuracy": Sum(correct, n),
            "neg_is_pos": Sum(neg_is_pos, n),
            "mask_frac": Sum(n, z.lens.sum()),
            "gumbel_temperature": Sum(one * self.temperature, one),
            "code_hist": Sum(hits, n),
            "prob_hist": Sum(q.probs.detach().sum(0), n),
        }
        return Loss(total, n, logs), q

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds perplexities of the hard choices and of the softmax, of at most groups * codes.

        code_usage is the share of all codes chosen at least once in the window summed over: to
        be compared between windows of one length. At evaluation also `health`.
        """
        scalars = super().summary(sums)
        for name, hist in (("code_ppl", "code_hist"), ("prob_ppl", "prob_hist")):
            if hist in sums:
                scalars[name] = perplexity(sums[hist].total)
        if "code_hist" in sums:
            scalars["code_usage"] = float((sums["code_hist"].total > 0).double().mean())
        return scalars | health(sums)

    def chance(self) -> dict[str, float]:
        """Guessing among the positive and its negatives."""
        choices = 1 + self.cfg.num_negatives + self.cfg.cross_negatives
        return {"contrastive": math.log(choices), "accuracy": 1 / choices}

    def alarms(self) -> tuple[Alarm, ...]:
        """Of `groups` * `codes` codes a healthy run keeps hundreds."""
        groups, size = self.cfg.groups, self.cfg.groups * self.cfg.codes
        return (
            Alarm("prob_ppl", f"one code per group ({groups} of {size})", low=1.05 * groups),
            Alarm("code_ppl", f"nearly all of {size} codes are out of use", low=0.03 * size),
            Alarm("neg_is_pos", "most negatives are the positive's own code", high=0.5),
        )

    def _diversity(self, probs: Tensor) -> Tensor:
        """(G V - perplexity) / (G V) of mean probabilities (G, V); eq. 4 up to a constant."""
        entropy = -(probs * (probs + 1e-7).log()).sum(-1)
        size = self.cfg.groups * self.cfg.codes
        return (size - entropy.exp().sum()) / size
