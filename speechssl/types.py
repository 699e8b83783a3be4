"""The vocabulary page: every value that crosses a seam of the house.

Letters used in shapes everywhere: B utterances, S samples, T frames, C encoder channels, D model
dimension, G code groups, V codes per group, M masked frames of a batch, N negatives, L tokens.
Nothing here imports torch at run time, so that manifests and plans stay cheap to use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest: a span of an audio file and what is known about it.

    `start` and `num_samples` count samples at the file's own rate, `rate_hz`.
    """

    id: str
    audio: str
    num_samples: int
    rate_hz: int
    start: int = 0
    text: str | None = None
    speaker: str | None = None
    labels: str | None = None  # FILE#ROW of a store of frame labels; see data/labels.py
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Length of the span in seconds."""
        return self.num_samples / self.rate_hz

    def samples_at(self, rate_hz: int) -> int:
        """Length of the span in samples once resampled to `rate_hz` (rounded to nearest)."""
        return (2 * self.num_samples * rate_hz + self.rate_hz) // (2 * self.rate_hz)


@dataclass(frozen=True, slots=True)
class Plan:
    """Random decisions of one micro-batch, drawn in a loader worker before the forward pass."""

    num_targets: int
    mask: np.ndarray | None = None  # (B, T) bool, True = hidden; never True on padding
    channel_mask: np.ndarray | None = None  # (B, D) bool, True = channel set to zero
    negatives: np.ndarray | None = None  # int64, shape as the objective that drew it says
    views: np.ndarray | None = None  # (B, 2, 2) int64, first frame and frames of two segments
    mixing: np.ndarray | None = None  # (B, 5) float32, what is mixed in; see objectives/wavlm.py
    replacement: np.ndarray | None = None  # (B, T) int64, which frame stands here; -1 = mask vector
    band: np.ndarray | None = None  # (B, 2) int64, first and number of the mel bins taken out


@dataclass(slots=True)
class Batch:
    """One micro-batch. Padding of `wave` is zero; `frame_lens` follows from the frame geometry.

    A rank with nothing to do gets a filler: one second of silence, no ids, `num_targets` 0.
    """

    ids: list[str]
    wave: Tensor  # (B, S) float32, waveform in [-1, 1], zeros after wave_lens
    wave_lens: Tensor  # (B,) int64 samples
    frame_lens: Tensor  # (B,) int64 frames
    num_targets: int  # loss denominator of this micro-batch, known before the forward pass
    seeds: tuple[int, ...] = ()  # one per utterance, for noise drawn on the device
    mask: Tensor | None = None  # (B, T) bool, True = hidden
    channel_mask: Tensor | None = None  # (B, D) bool, True = zeroed
    negatives: Tensor | None = None  # int64, shape as the objective says
    views: Tensor | None = None  # (B, 2, 2) int64, first frame and frames of two segments
    mixing: Tensor | None = None  # (B, 5) float32, row mixed in or -1, dB, and three shares
    replacement: Tensor | None = None  # (B, T) int64, which frame stands here; -1 = mask vector
    band: Tensor | None = None  # (B, 2) int64, first and number of the mel bins taken out
    tokens: Tensor | None = None  # (B, L) int64
    token_lens: Tensor | None = None  # (B,) int64
    labels: Tensor | None = None  # (B, T, P) int64, P for each frame; -100 on padding
    speakers: Tensor | None = None  # (B,) int64 class index
    skipped: tuple[tuple[str, str, str], ...] = ()  # (kind, where, message) of unusable audio

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str | torch.device) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if hasattr(value := getattr(self, f.name), "to")
        }
        return replace(self, **moved)


@dataclass(frozen=True)  # no slots: ZeRO-3 looks for tensors in vars() of what a module returns
class Frames:
    """What every network stage returns: a padded sequence and its lengths."""

    x: Tensor  # (B, T, D)
    lens: Tensor  # (B,) int64
    layers: tuple[Tensor, ...] = ()  # each (B, T, D); see Backbone.context for the numbering
    unnormed: Tensor | None = (
        None  # (B, T, D), with layers: x before a final norm, where it has one
    )

    @property
    def pad(self) -> Tensor:
        """(B, T) bool, True = padding: the one polarity of the whole code base."""
        import torch

        steps = torch.arange(self.x.shape[1], device=self.x.device)
        return steps[None, :] >= self.lens[:, None]


class Sum(NamedTuple):
    """A sum and the number of things summed: adds up over micro-batches, ranks and steps."""

    total: Tensor
    count: Tensor


@dataclass  # no slots, as Frames
class Loss:
    """A SUM over targets with its count; the engine divides by the global count, nobody else.

    `logs` hold detached sums of any shape (a histogram is a vector sum).
    """

    total: Tensor  # () float32, has grad
    count: Tensor  # () int64, equals batch.num_targets
    logs: dict[str, Sum] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. `step` counts finished optimizer updates; data order follows from it."""

    step: int = 0
    max_steps: int = 1
    seed: int = 1
    best: float | None = None  # best validation score so far
    best_ties: tuple[float, ...] = ()  # its further scores, which decide between equal ones
    best_step: int | None = None
