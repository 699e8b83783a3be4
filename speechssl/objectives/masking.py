"""Span masks, drawn with numpy in loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechssl.types import Plan

#: No utterance hides more than this share of its frames: something must be left to predict from.
MAX_COVERAGE = 0.8


@dataclass(frozen=True)
class SpanMask:
    """Spans of `length` frames; `prob` is the expected share counted with multiplicity.

    arXiv 2006.11477, section 3.2 (p = 0.065, M = 10 is prob 0.65, length 10 here); fairseq's
    sampler. Differs: masks are ragged (rows are not trimmed to the same count), coverage is capped
    at 0.8, and rows shorter than two spans are left alone.
    """

    prob: float = 0.65
    length: int = 10
    min_masks: int = 2

    def __post_init__(self) -> None:
        if not (0.0 <= self.prob <= 1.0 and self.length >= 1 and self.min_masks >= 0):
            raise ValueError(
                f"mask: got prob {self.prob}, length {self.length}, min_masks {self.min_masks}; "
                "expected 0 <= prob <= 1, length >= 1, min_masks >= 0"
            )

    def draw_row(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Mask of one utterance, (frames,) bool, True = hidden."""
        mask = np.zeros(frames, dtype=bool)
        if frames < 2 * self.length:
            return mask
        spans = max(self.min_masks, int(self.prob * frames / self.length + rng.random()))
        places = max(frames - self.length, spans + 1)
        starts = rng.choice(places, size=min(spans, places), replace=False)
        for start in starts:
            span = slice(start, start + self.length)
            if mask.any() and mask.sum() + (~mask[span]).sum() > MAX_COVERAGE * frames:
                break
            mask[span] = True
        return mask

    def draw(self, frame_lens: np.ndarray, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """Masks of a batch, (B, T) bool with T the longest row; padding is never masked."""
        mask = np.zeros((len(frame_lens), int(frame_lens.max(initial=0))), dtype=bool)
        for row, (frames, rng) in enumerate(zip(frame_lens, rngs, strict=True)):
            mask[row, :frames] = self.draw_row(int(frames), rng)
        return mask


def plan_masks(
    cfg: Any,
    dim: int,
    frame_lens: np.ndarray,
    rngs: Sequence[np.random.Generator],
    train: bool,
) -> Plan:
    """The `plan` of objectives whose targets are masked frames: masks (B, T) of `cfg.mask`."""
    mask = cfg.mask.draw(frame_lens, rngs)
    return Plan(num_targets=int(mask.sum()), mask=mask)


@dataclass(frozen=True)
class ChannelMask:
    """Spans of `length` channels set to zero for a whole utterance (fairseq's mask_channel)."""

    prob: float = 0.25
    length: int = 64

    def __post_init__(self) -> None:
        if not (0.0 <= self.prob <= 1.0 and self.length >= 1):
            raise ValueError(
                f"channel_mask: got prob {self.prob}, length {self.length}; "
                "expected 0 <= prob <= 1, length >= 1"
            )

    def draw(self, dim: int, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """(B, D) bool, True = set to zero; the same sampler as for frames, with no minimum."""
        spans = SpanMask(self.prob, self.length, min_masks=0)
        return np.stack([spans.draw_row(dim, rng) for rng in rngs])
