"""w2v-BERT: wav2vec 2.0 in the lower blocks, and the upper ones name the codes it has learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.objectives.health import codes_in_use, moments
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.types import Batch, Loss, Sum


class W2vBert(Wav2Vec2):
    """wav2vec 2.0's loss on an inner block, and masked prediction of its codes on the last one.

    Source: arXiv 2108.06209, section 3. The cross-entropy of the codes falls to 0 where all frames
    have one code, so it has to be read beside `target_ppl`. Differs: the network hears the
    waveform, not log-mel frames, and its blocks are the backbone's (`block: conformer` in the
    paper), the inner one's output as it is, without a further norm; the codes to be named are the
    likeliest ones, without the Gumbel noise of the contrastive targets; codes may be in several
    groups, each named by a projection of its own, and the loss is their mean.
    """

    @dataclass(frozen=True)
    class Config(Wav2Vec2.Config):
        """Defaults are the published set-up; half of the blocks are contrastive, as in XL."""

        contrastive_layers: int = 0  # blocks below the contrastive loss; 0: half of all
        contrastive_weight: float = 1.0  # of wav2vec 2.0's whole loss
        masked_weight: float = 1.0  # of the cross-entropy of the codes
        final_dim: int = 768
        groups: int = 1
        codes: int = 1024
        code_dim: int = 1024
        temperature_end: float = 0.1
        penalty_weight: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.contrastive_layers < 0:
                raise ConfigError(
                    f"objective.contrastive_layers: got {self.contrastive_layers}, expected 1 or "
                    "more, or 0 for half of the blocks"
                )
            if self.contrastive_weight < 0 or self.masked_weight < 0:
                raise ConfigError(
                    f"objective: got contrastive_weight {self.contrastive_weight:g} and "
                    f"masked_weight {self.masked_weight:g}, expected at least 0"
                )

    best_metric = (("contrastive", False), ("masked_loss", False))

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        if backbone.cfg.layerdrop > 0:
            raise ConfigError(
                f"objective w2vbert needs every block in every update; backbone.layerdrop is "
                f"{backbone.cfg.layerdrop:g}, expected 0"
            )
        self.contrastive_layers = cfg.contrastive_layers or backbone.num_layers // 2
        if not 1 <= self.contrastive_layers < backbone.num_layers:
            raise ConfigError(
                f"objective.contrastive_layers: got {self.contrastive_layers} of backbone.layers "
                f"{backbone.num_layers}; expected at least one block below the contrastive loss "
                "and one above"
            )
        self.head = nn.Linear(backbone.dim, cfg.groups * cfg.codes)

    def forward(self, batch: Batch) -> Loss:
        """Both losses over the M masked frames; at evaluation also signs of collapse."""
        cfg = self.cfg
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        local = self.backbone.features(z)
        context = self.backbone.context(z, batch.mask, layers=True)
        loss, q = self.contrast(batch, z, local, context.layers[self.contrastive_layers])
        codes = q.probs.detach().argmax(-1)  # (M, G)
        logits = self.head(context.x[batch.mask]).float().unflatten(-1, (cfg.groups, cfg.codes))
        masked_loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum")
        masked_loss = masked_loss / cfg.groups
        right = (logits.detach().argmax(-1) == codes).float().mean(-1).sum()
        loss.logs |= {
            "masked_loss": Sum(masked_loss.detach(), loss.count),
            "masked_accuracy": Sum(right, loss.count),
            "target_hist": Sum(F.one_hot(codes, cfg.codes).sum(0), loss.count),
        }
        if not self.training:
            loss.logs |= moments(context)
        total = cfg.contrastive_weight * loss.total + cfg.masked_weight * masked_loss
        return Loss(total, loss.count, loss.logs)

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds of the codes to be named, as codes_in_use: target_ppl, _usage and _top_share."""
        scalars = super().summary(sums)
        if "target_hist" in sums:
            found = codes_in_use({"code_hist": sums["target_hist"]})
            scalars["target_ppl"] = found["code_ppl"]
            scalars["target_usage"] = found["code_usage"]
            scalars["target_top_share"] = found["top_code_share"]
        return scalars

    def chance(self) -> dict[str, float]:
        """Guessing; naming the commonest code is right in `target_top_share` (logged)."""
        guessed = {"masked_loss": math.log(self.cfg.codes), "masked_accuracy": 1 / self.cfg.codes}
        return super().chance() | guessed
