"""BEST-RQ: name the random-projection code of what a masked frame sounds like."""

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
from speechssl.models.backbone import Backbone, normalize
from speechssl.models.blocks.norms import standardise
from speechssl.models.blocks.quantize import RandomQuantizer, perplexity
from speechssl.models.features.mel import HOP, RATE_HZ, LogMel, stack_frames
from speechssl.objectives.base import Objective
from speechssl.objectives.contrast import utterance_contrast
from speechssl.objectives.health import health, moments
from speechssl.objectives.masking import SpanMask
from speechssl.types import Batch, Frames, Loss, Plan, Sum

#: Least standard deviation (nats) that a mel bin is divided by: bins above the band of upsampled
#: telephone speech would be blown up to the size of speech.
LEAST_STD = 1.0


class BestRQ(Objective):
    """Cross-entropy of frozen random-projection codes at masked frames (arXiv 2202.01855, sec. 3).

    The targets are log-mel frames of the clean waveform that the frame covers, stacked and
    normalised. Differs: the network hears the waveform and its masked frames become the learnt
    mask vector, not noise; codebooks may be several, each with its own softmax (the loss is their
    mean); and an utterance contrast may be added in one layer, as UniSpeech-SAT does
    (arXiv 2110.05752, section 3.1; see `contrast.utterance_contrast`), because codes of speech
    whose channel and voice have been normalised away give no reason to know who speaks.
    """

    @dataclass(frozen=True)
    class Config:
        """The mask hides 400 ms from 1 % of the 10 ms frames on, at 50 Hz frames, as published.

        codebooks see mel bins of zero mean and unit variance over the utterance; level_codebooks
        only have the loudness of the whole taken away, and so keep voice and channel.
        """

        mask: SpanMask = field(default_factory=lambda: SpanMask(prob=0.4, length=20, min_masks=1))
        codebooks: int = 1
        level_codebooks: int = 0
        codes: int = 8192
        code_dim: int = 16
        mel_bins: int = 80
        utterance_weight: float = 0.0  # of the contrast with other utterances of the micro-batch
        utterance_layer: int = 0  # state it reads: 0 the input of the first block, L the output
        utterance_dim: int = 128
        utterance_temperature: float = 0.1

        def __post_init__(self) -> None:
            if self.codebooks < 0 or self.level_codebooks < 0 or not self.num_books:
                raise ConfigError(
                    f"objective: got codebooks {self.codebooks} and level_codebooks "
                    f"{self.level_codebooks}, expected at least 1 in all and none below 0"
                )
            if self.codes < 2 or self.code_dim < 1 or self.mel_bins < 1:
                raise ConfigError(
                    f"objective: got codes {self.codes}, code_dim {self.code_dim}, mel_bins "
                    f"{self.mel_bins}; expected at least 2, 1 and 1"
                )
            if self.utterance_weight < 0 or self.utterance_temperature <= 0:
                raise ConfigError(
                    f"objective: got utterance_weight {self.utterance_weight} and "
                    f"utterance_temperature {self.utterance_temperature}; expected at least 0, "
                    "and above 0"
                )

        @property
        def num_books(self) -> int:
            """Codebooks of both kinds."""
            return self.codebooks + self.level_codebooks

    needs: ClassVar = frozenset({"mask"})

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        if backbone.cfg.context != "transformer":
            raise ConfigError(
                f"objective bestrq masks the context network's input; backbone.context is "
                f"'{backbone.cfg.context}', expected 'transformer'"
            )
        geometry = backbone.geometry
        if geometry.rate_hz != RATE_HZ or geometry.hop % HOP:
            raise ConfigError(
                f"objective bestrq stacks log-mel frames of {HOP} samples at {RATE_HZ} Hz; the "
                f"backbone has frames of {geometry.hop} samples at {geometry.rate_hz} Hz, expected "
                f"a multiple of {HOP} (backbone.conv_strides) at {RATE_HZ}"
            )
        if cfg.utterance_weight and not 0 <= cfg.utterance_layer <= backbone.num_layers:
            raise ConfigError(
                f"objective.utterance_layer is {cfg.utterance_layer}, expected 0 to "
                f"{backbone.num_layers}, the number of backbone.layers"
            )
        self.mel = LogMel(cfg.mel_bins)
        stacked = cfg.mel_bins * geometry.hop // HOP
        self.quantizer = RandomQuantizer(stacked, cfg.num_books, cfg.codes, cfg.code_dim)
        self.head = nn.Linear(backbone.dim, cfg.num_books * cfg.codes)
        if cfg.utterance_weight:
            self.project_utterance = nn.Linear(backbone.dim, cfg.utterance_dim)

    @staticmethod
    def plan(
        cfg: Any,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """Masks (B, T); targets are masked frames."""
        mask = cfg.mask.draw(frame_lens, rngs)
        return Plan(num_targets=int(mask.sum()), mask=mask)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Codes of every frame, (B, T, K) int64: the normalised bins' first, then the level's.

        Those of padding mean nothing.
        """
        geometry, cfg = self.backbone.geometry, self.cfg
        frames = geometry.frames(batch.wave.shape[1])
        mel = self.mel(normalize(batch.wave, batch.wave_lens))
        x = stack_frames(mel, batch.wave_lens, frames, geometry.hop)  # (B, T, n)
        kinds = []
        if cfg.codebooks:
            normal = standardise(x, batch.frame_lens, least_std=LEAST_STD)
            kinds.append(normal.unsqueeze(2).expand(-1, -1, cfg.codebooks, -1))
        if cfg.level_codebooks:
            level = _level(x, batch.frame_lens)
            kinds.append(level.unsqueeze(2).expand(-1, -1, cfg.level_codebooks, -1))
        return self.quantizer(torch.cat(kinds, 2).flatten(0, 1)).unflatten(0, x.shape[:2])

    def forward(self, batch: Batch) -> Loss:
        """Loss over the M masked frames of the batch; at evaluation also signs of collapse."""
        mask, cfg = batch.mask, self.cfg
        if mask is None:
            raise ValueError("bestrq needs a batch with a mask; see Objective.plan_fn")
        codes = self.targets(batch)[mask]  # (M, K)
        z = self.backbone.encode(batch.wave, batch.wave_lens)
        context = self.backbone.context(z, mask, layers=cfg.utterance_weight > 0)
        logits = self.head(context.x[mask]).float().unflatten(-1, (cfg.num_books, cfg.codes))
        per_book = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")  # (M, K)
        masked_loss = per_book.sum() / cfg.num_books
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
        if cfg.utterance_weight:
            other, found = self._utterances(context, mask)
            total = total + cfg.utterance_weight * other
            logs["utterance_loss"] = Sum(other.detach(), n)
            logs["utterance_accuracy"] = Sum(found, n)
        if not self.training:
            logs |= moments(context)
        return Loss(total, n, logs)

    def _utterances(self, context: Frames, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = context.layers[self.cfg.utterance_layer][mask]  # (M, D)
        vectors = self.project_utterance(states)
        return utterance_contrast(vectors, mask.nonzero()[:, 0], self.cfg.utterance_temperature)

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds what the codes are like, the mean over codebooks.

        code_ppl: perplexity, of `codes`; code_usage: share of codes that occur in the window summed
        over; top_code_share: of the commonest code, which is what `accuracy` has to beat. At
        evaluation also `health`.
        """
        scalars = super().summary(sums)
        if "code_hist" in sums:
            hist = sums["code_hist"].total.double()
            scalars["code_ppl"] = perplexity(hist) / len(hist)
            scalars["code_usage"] = float((hist > 0).double().mean())
            scalars["top_code_share"] = float((hist.amax(-1) / hist.sum(-1).clamp(min=1)).mean())
        return scalars | health(sums)

    def chance(self) -> dict[str, float]:
        """Guessing among all codes; naming the commonest is right in `top_code_share` (logged)."""
        return {"masked_loss": math.log(self.cfg.codes), "accuracy": 1 / self.cfg.codes}


def _level(x: Tensor, lens: Tensor) -> Tensor:
    """Take the mean of all bins and frames of an utterance away: x (B, T, n) -> (B, T, n)."""
    valid = (torch.arange(x.shape[1], device=x.device) < lens[:, None])[..., None]
    count = (lens * x.shape[2]).clamp(min=1)
    return x - ((x * valid).sum((1, 2)) / count)[:, None, None]
