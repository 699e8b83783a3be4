"""HuBERT: name the cluster that a masked frame belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.objectives.base import Alarm, Objective
from speechssl.objectives.health import DEGENERATE, codes_in_use, health, moments
from speechssl.objectives.masking import SpanMask, plan_masks
from speechssl.objectives.penalty import mean_square
from speechssl.types import Batch, Loss, Sum


class Hubert(Objective):
    """Cross-entropy of cluster labels at masked frames (arXiv 2106.07447, sec. II, eq. 3).

    The labels come with the manifest (`speechssl cluster`): first of MFCCs, then of a layer of the
    model that those gave. Differs: frames that are not masked have no part in the loss (the alpha
    = 1 of the paper, as released); there are exactly as many classes as clusters; frames wider than
    a label may predict several, each by a projection of its own.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are the base set-up of the paper."""

        mask: SpanMask = field(default_factory=lambda: SpanMask(prob=0.8))
        head: Literal["cosine", "linear"] = "cosine"  # to class embeddings, as published, or a map
        final_dim: int = 256  # of the class embeddings; cosine alone
        temperature: float = 0.1  # logits are divided by it
        labels_per_frame: int = 1  # evenly spaced within the frame
        penalty_weight: float = 10.0

        def __post_init__(self) -> None:
            if self.final_dim < 1 or self.labels_per_frame < 1:
                raise ConfigError(
                    f"objective: got final_dim {self.final_dim} and labels_per_frame "
                    f"{self.labels_per_frame}, expected at least 1"
                )
            if self.temperature <= 0 or self.penalty_weight < 0:
                raise ConfigError(
                    f"objective: got temperature {self.temperature:g} and penalty_weight "
                    f"{self.penalty_weight:g}, expected above 0 and at least 0"
                )

    needs: ClassVar = frozenset({"mask", "labels"})
    best_metric = (("masked_loss", False),)
    classes_from = "labels"

    plan = staticmethod(plan_masks)

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        self.require_masking()
        if len(classes) < 2:
            raise ConfigError(
                f"objective {self.name}: got {len(classes)} clusters, expected 2 or more"
            )
        self.labels_per_frame = cfg.labels_per_frame
        if cfg.head == "cosine":
            self.head = nn.Linear(backbone.dim, cfg.labels_per_frame * cfg.final_dim)
            self.label_embs = nn.Parameter(torch.rand(len(classes), cfg.final_dim))
        else:
            self.head = nn.Linear(backbone.dim, cfg.labels_per_frame * len(classes))

    def logits(self, c: Tensor) -> Tensor:
        """Scores (M, P, K) of the clusters for context frames c (M, D), float32."""
        parts = self.cfg.labels_per_frame
        scores = self.head(c).unflatten(-1, (parts, -1))
        if self.cfg.head == "cosine":
            with torch.autocast(c.device.type, enabled=False):
                embedded = F.normalize(self.label_embs.float(), dim=-1)
                scores = F.normalize(scores.float(), dim=-1) @ embedded.T
        return scores.float() / self.cfg.temperature

    def forward(self, batch: Batch) -> Loss:
        """Loss over the M masked frames, the mean over the labels of each.

        At evaluation also the accuracy where nothing is hidden, and signs of collapse.
        """
        mask, labels = batch.mask, batch.labels
        if mask is None or labels is None:
            raise ValueError("hubert needs a batch with mask and labels; see Objective.plan_fn")
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        context = self.backbone.context(z, mask)
        logits, targets = self.logits(context.x[mask]), labels[mask]  # (M, P, K), (M, P)
        parts = targets.shape[1]
        masked_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        masked_loss = masked_loss / parts
        counts = mask.sum(1)
        penalty = (mean_square(z) * counts).sum()
        n = counts.sum()
        hits = torch.bincount(targets.flatten(), minlength=len(self.classes))
        logs = {
            "masked_loss": Sum(masked_loss.detach(), n),
            "penalty": Sum(penalty.detach(), n),
            "accuracy": Sum(_right(logits, targets), n),
            "mask_frac": Sum(n, z.lens.sum()),
            "code_hist": Sum(hits[None], n),
        }
        if not self.training:
            seen = ~(mask | context.pad)
            right = _right(self.logits(context.x[seen]), labels[seen])
            logs |= moments(context) | {"accuracy_unmasked": Sum(right, seen.sum())}
        # The mask vector and the head are part of the graph in every batch, masked or not.
        touched = self.backbone.masked_spec_embed.sum() + logits.sum()
        total = masked_loss + self.cfg.penalty_weight * penalty + 0.0 * touched
        return Loss(total, n, logs)

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds `codes_in_use`, and at evaluation `health`."""
        return super().summary(sums) | codes_in_use(sums) | health(sums)

    def alarms(self) -> tuple[Alarm, ...]:
        """Targets that are nearly all the same teach nothing."""
        return (DEGENERATE,)

    def chance(self) -> dict[str, float]:
        """Guessing among all clusters; naming the commonest is right in `top_code_share`."""
        return {"masked_loss": math.log(len(self.classes)), "accuracy": 1 / len(self.classes)}


def _right(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over frames of the share of labels (M, P) that the best of (M, P, K) names."""
    return (logits.detach().argmax(-1) == targets).float().mean(-1).sum()
