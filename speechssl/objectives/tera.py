"""TERA: tell the clean log-mel frames of altered speech. Without a band it is Mockingjay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.features.band_stop import band_stop
from speechssl.models.features.mel import hertz, mel_edges
from speechssl.objectives.base import Objective
from speechssl.objectives.health import health, moments
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.mel_targets import MelTargets
from speechssl.types import Batch, Frames, Loss, Plan, Sum


class Tera(Objective):
    """L1 to clean log-mel frames where time or frequency was altered (arXiv 2007.06028, sec. 3).

    Of each utterance either all chosen frames are hidden, or all are replaced by other frames of
    it, or all are left alone (Mockingjay, arXiv 1910.12638, sec. 2.2); and a band of mel bins is
    taken out. The loss is the mean over all altered bins of all frames. Differs: the network hears
    the waveform, so that frames are altered where they enter the context network (the mask vector
    in place of zeros), and the band is filtered out of the waveform; spans are 200 ms long, for
    log-mel frames of 10 ms interpolate well over the published 70 ms; no noise is added; nothing is
    replaced or left alone at evaluation.
    """

    @dataclass(frozen=True)
    class Config:
        """Shares as published; `max_band` 0 is Mockingjay."""

        mask: SpanMask = field(default_factory=lambda: SpanMask(prob=0.15, min_masks=1))
        share_hidden: float = 0.8  # of the utterances: chosen frames become the mask vector
        share_replaced: float = 0.1  # become other frames; those of the rest are left alone
        max_band: float = 0.2  # share of the mel bins that the widest band takes out
        mel_bins: int = 80

        def __post_init__(self) -> None:
            if self.mel_bins < 1:
                raise ConfigError(f"objective.mel_bins: got {self.mel_bins}, expected at least 1")
            shares = (self.share_hidden, self.share_replaced, 1 - self.max_band)
            if min(*shares, self.max_band) < 0 or shares[0] + shares[1] > 1 + 1e-9:
                raise ConfigError(
                    f"objective: got share_hidden {self.share_hidden:g}, share_replaced "
                    f"{self.share_replaced:g} and max_band {self.max_band:g}, expected shares from "
                    "0 to 1, the first two at most 1 together"
                )

    needs: ClassVar = frozenset({"mask", "replacement", "band"})
    edges_hz: Tensor

    def __init__(self, backbone: Backbone, cfg: Config, classes: Sequence[str] = ()) -> None:
        super().__init__(backbone, cfg, classes)
        self.require_masking()
        self.mel = MelTargets(backbone.geometry, cfg.mel_bins, self.name)
        self.register_buffer("edges_hz", hertz(mel_edges(cfg.mel_bins)).float(), persistent=False)
        self.head = nn.Sequential(
            nn.Linear(backbone.dim, backbone.dim),
            nn.GELU(),
            nn.LayerNorm(backbone.dim),
            nn.Linear(backbone.dim, self.mel.dim),
        )

    @staticmethod
    def plan(
        cfg: Any,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """Chosen frames and what stands there (B, T), bands (B, 2); targets are altered bins.

        A frame counts `mel_bins` bins, however many log-mel frames are stacked in it.
        """
        mask = cfg.mask.draw(frame_lens, rngs)
        replacement = np.tile(np.arange(mask.shape[1]), (len(mask), 1))
        band = np.zeros((len(mask), 2), np.int64)
        for row, (frames, rng) in enumerate(zip(frame_lens, rngs, strict=True)):
            fate = rng.random() if train else 0.0
            if not train or fate < cfg.share_hidden:
                replacement[row, mask[row]] = -1
            elif fate < cfg.share_hidden + cfg.share_replaced:
                for start, end in runs(mask[row]):
                    source = rng.integers(frames - (end - start) + 1)
                    replacement[row, start:end] = np.arange(source, source + end - start)
            band[row, 1] = rng.integers(int(cfg.max_band * cfg.mel_bins) + 1)
            band[row, 0] = rng.integers(cfg.mel_bins - band[row, 1] + 1)
        hidden = mask.sum(1)
        bins = hidden * cfg.mel_bins + (frame_lens - hidden) * band[:, 1]
        return Plan(num_targets=int(bins.sum()), mask=mask, replacement=replacement, band=band)

    def forward(self, batch: Batch) -> Loss:
        """Loss over the altered bins; of each the mean over the log-mel frames of its frame."""
        mask, replacement, band = batch.mask, batch.replacement, batch.band
        if mask is None or replacement is None or band is None:
            raise ValueError("tera needs a batch with mask, replacement and band; see its plan")
        context = self.backbone.context(
            *self._altered(batch.wave, batch.wave_lens, band, replacement)
        )
        predicted = self.head(context.x)  # (B, T, n)
        dtype = torch.promote_types(predicted.dtype, torch.float32)
        targets = self.mel(batch)
        line = self.mel.interpolated(targets, mask, batch.frame_lens)

        bins = torch.arange(self.cfg.mel_bins, device=mask.device)
        stopped = (bins >= band[:, :1]) & (bins < band.sum(1, keepdim=True))  # (B, F)
        elsewhere = (stopped[:, None] & ~(mask | context.pad)[..., None]).to(dtype)  # (B, T, F)
        altered = torch.where(mask[..., None], 1.0, elsewhere)

        def error(guess: Tensor, where: Tensor) -> Tensor:
            """Sum of distances to the targets (B, T, n) in the bins `where` (B, T, 1 or F)."""
            distance = (guess.to(dtype) - targets).abs().unflatten(2, (self.mel.per_frame, -1))
            return (distance.mean(2) * where).sum()

        total = error(predicted, altered)
        told, nothing = predicted.detach(), torch.zeros_like(targets)
        hidden, n = mask[..., None].to(dtype), altered.count_nonzero()
        lost = error(told, hidden)
        logs = {
            "masked_l1": Sum(lost, mask.sum() * self.cfg.mel_bins),
            "zero_ratio": Sum(lost, error(nothing, hidden)),
            "interpolation_ratio": Sum(lost, error(line, hidden)),
            "mask_frac": Sum(mask.sum(), context.lens.sum()),
        }
        if self.cfg.max_band:
            logs["band_zero_ratio"] = Sum(error(told, elsewhere), error(nothing, elsewhere))
        if not self.training:
            logs |= moments(context)
        # The mask vector and the head are part of the graph in every batch, altered or not.
        total = total + 0.0 * (self.backbone.masked_spec_embed.sum() + predicted.sum())
        return Loss(total, n, logs)

    def _altered(
        self, wave: Tensor, wave_lens: Tensor, band: Tensor, replacement: Tensor
    ) -> tuple[Frames, Tensor]:
        """What the context network gets: local features, and where the mask vector stands."""
        if self.cfg.max_band:
            # Bin i reaches from edge i to i + 2, so a band of w bins does from i to i + w + 1.
            low = self.edges_hz[band[:, 0]]
            high = self.edges_hz[band.sum(1) + 1]
            high = torch.where(band[:, 1] > 0, high, low)
            wave = band_stop(wave, wave_lens, low, high, self.backbone.geometry.rate_hz)
        z = self.backbone.encode(wave, wave_lens)
        index = replacement.clamp(min=0)[..., None].expand(-1, -1, z.x.shape[2])
        return Frames(z.x.gather(1, index), z.lens), replacement < 0

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Adds `health` at evaluation."""
        return super().summary(sums) | health(sums)

    def chance(self) -> dict[str, float]:
        """Ratios of the error: to that of the mean, and of a line between the visible frames."""
        return {"zero_ratio": 1.0, "band_zero_ratio": 1.0, "interpolation_ratio": 1.0}


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and one past the last place of each run of True in (T,) bool."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2], edges[1::2], strict=True))
