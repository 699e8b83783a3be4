"""Speaker identification and embeddings: a frozen probe as in SUPERB, or full fine-tuning.

SUPERB, arXiv 2105.01051; AM-softmax, arXiv 1801.05599; AAM-softmax (ArcFace), arXiv 1801.07698.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.downstream.freeze import backbone_frames, freeze, freeze_features
from speechssl.downstream.readout import weighted_sum
from speechssl.errors import ConfigError, DataError
from speechssl.models.backbone import Backbone
from speechssl.models.blocks.pool import Pooling, pool
from speechssl.objectives.base import Objective
from speechssl.types import Batch, Frames, Loss, Sum

Criterion = Literal["softmax", "am_softmax", "aam_softmax"]


class Speaker(Objective):
    """Projection, pooling over time, and a classifier of the training speakers.

    `embed` gives vectors that compare by cosine. Source: SUPERB (arXiv 2105.01051), appendix.
    """

    @dataclass(frozen=True)
    class Config:
        """The defaults are SUPERB's speaker identification.

        frozen: the backbone never learns and runs in evaluation mode; else all of it learns,
        but for the convolutional encoder when freeze_features.
        layers: read a learnt weighted sum of all layers, or the last; norm `layer` brings each to
        one scale.
        scale, margin: of am_softmax and aam_softmax; softmax has neither.
        """

        frozen: bool = True
        freeze_features: bool = True
        layers: Literal["last", "weighted"] = "weighted"
        norm: Literal["none", "layer"] = "none"  # `time` would take the speaker away
        proj_dim: int = 256
        pooling: Pooling = "mean"
        loss: Criterion = "softmax"
        scale: float = 30.0
        margin: float = 0.2

        def __post_init__(self) -> None:
            if self.proj_dim < 1 or self.scale <= 0 or not 0.0 <= self.margin < math.pi / 2:
                raise ConfigError(
                    f"objective: got proj_dim {self.proj_dim}, scale {self.scale}, margin "
                    f"{self.margin}; expected proj_dim >= 1, scale > 0, 0 <= margin < pi/2"
                )
            if self.loss == "softmax" and (self.scale, self.margin) != (30.0, 0.2):
                raise ConfigError(
                    f"objective: scale {self.scale} and margin {self.margin} belong to am_softmax "
                    "and aam_softmax, but loss is 'softmax'; set loss, or leave the two out"
                )
            if self.norm != "none" and self.layers == "last":
                raise ConfigError(
                    f"objective: norm '{self.norm}' is for the weighted sum, but layers is 'last'; "
                    "set layers to 'weighted' or norm to 'none'"
                )

    needs: ClassVar[frozenset[str]] = frozenset({"speakers"})
    best_metric = (("accuracy", True),)
    classes_from: ClassVar[Literal["text", "speaker"] | None] = "speaker"

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        if len(self.classes) < 2:
            raise ConfigError(
                f"objective speaker: got {len(self.classes)} speakers, expected at least 2; "
                "does the training manifest have speakers?"
            )
        if cfg.frozen:
            freeze(backbone)
        elif cfg.freeze_features:
            freeze_features(backbone)
        if cfg.layers == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(backbone.num_layers + 1))
        self.projector = nn.Linear(backbone.dim, cfg.proj_dim)
        width = cfg.proj_dim * (2 if cfg.pooling == "mean_std" else 1)
        cosine = cfg.loss != "softmax"
        self.classifier = (CosineLinear if cosine else nn.Linear)(width, len(self.classes))

    def train(self, mode: bool = True) -> Speaker:
        """Training mode, from which a frozen backbone is excepted."""
        super().train(mode)
        if self.cfg.frozen:
            self.backbone.eval()
        return self

    def embed(self, batch: Batch) -> Tensor:
        """One vector per utterance, (B, E) float32, not normalised.

        E is proj_dim, or twice that with `mean_std` pooling.
        """
        weighted = self.cfg.layers == "weighted"
        frames = backbone_frames(
            self.backbone,
            batch,
            features_learn=not self.cfg.freeze_features,
            context_learns=not self.cfg.frozen,
            layers=weighted,
        )
        if weighted:
            x = weighted_sum(frames, self.layer_weights, self.cfg.norm)
            frames = Frames(x, frames.lens)
        return pool(self.projector(frames.x), frames.pad, self.cfg.pooling)

    def logits(self, embedding: Tensor) -> Tensor:
        """Scores of the classes without margin: embedding (B, E) -> (B, number of speakers)."""
        scores = self.classifier(embedding).float()
        return scores if self.cfg.loss == "softmax" else self.cfg.scale * scores

    def forward(self, batch: Batch) -> Loss:
        """Cross-entropy summed over utterances. Raises DataError for an unknown speaker."""
        if batch.speakers is None:
            raise DataError("objective speaker: the batch has no speakers; the manifest needs them")
        target = batch.speakers
        unknown = (target < 0) | (target >= len(self.classes))
        if unknown.any():
            row = int(unknown.nonzero()[0])
            raise DataError(
                f"objective speaker: utterance '{batch.ids[row]}' has speaker index "
                f"{int(target[row])}, expected 0 to {len(self.classes) - 1}: "
                "its speaker is not among those of the training manifest"
            )
        logits = self.logits(self.embed(batch))
        scores = logits
        if self.cfg.loss != "softmax":
            scale = self.cfg.scale
            scores = scale * with_margin(logits / scale, target, self.cfg.loss, self.cfg.margin)
        total = F.cross_entropy(scores, target, reduction="sum")
        count = torch.tensor(len(batch), device=total.device)
        logs = {"accuracy": Sum((logits.argmax(1) == target).sum(), count)}
        if self.cfg.layers == "weighted":
            share = torch.softmax(self.layer_weights.detach().float(), 0)
            entropy = -(share * share.clamp(min=1e-12).log()).sum()
            logs["layer_entropy"] = Sum(entropy, torch.ones_like(entropy))
        return Loss(total, count, logs)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[str]:
        """The likeliest training speaker of each utterance. Call `eval()` first."""
        best = self.logits(self.embed(batch)).argmax(1)
        return [self.classes[i] for i in best.tolist()]

    def chance(self) -> dict[str, float]:
        """Accuracy of guessing, and with softmax the loss of equal scores."""
        levels = {"accuracy": 1.0 / len(self.classes)}
        if self.cfg.loss == "softmax":
            levels["loss"] = math.log(len(self.classes))
        return levels


class CosineLinear(nn.Linear):
    """Cosine of an input with each of S class vectors, always in float32.

    A module of its own, because ZeRO-3 gathers a weight only while its module runs.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, E) to cosines (B, S)."""
        # Cosines near 1 differ in digits that bf16 does not have.
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(x.float(), dim=1) @ F.normalize(self.weight.float(), dim=1).T


def with_margin(cosine: Tensor, target: Tensor, kind: Criterion, margin: float) -> Tensor:
    """Cosines (B, S) with the target's (target (B,) int64) made harder by `margin`.

    am_softmax: cos - m. aam_softmax: cos(theta + m), and where theta + m would pass pi (the
    cosine would rise again) cos - m sin(pi - m). softmax: unchanged.
    """
    if kind == "softmax":
        return cosine
    own = cosine.gather(1, target[:, None])  # (B, 1)
    if kind == "am_softmax":
        harder = own - margin
    else:
        own = own.clamp(-1 + 1e-7, 1 - 1e-7)  # the root below has no gradient at 1
        sine = (1.0 - own.square()).sqrt()
        harder = torch.where(
            own > math.cos(math.pi - margin),
            own * math.cos(margin) - sine * math.sin(margin),
            own - margin * math.sin(math.pi - margin),
        )
    return cosine.scatter(1, target[:, None], harder)
