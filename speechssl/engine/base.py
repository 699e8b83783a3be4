"""What an engine is: the seam between the training loop and what carries out updates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from speechssl.errors import SpeechSSLError
from speechssl.types import Batch, Progress, Sum


@dataclass(slots=True)
class StepStats:
    """Outcome of one optimizer update on this rank; sums are not yet reduced over ranks."""

    loss: Sum  # this rank's sum over targets and their number
    grad_norm: float  # of the whole update, before clipping, equal on all ranks
    lr: float
    finite: bool  # False: the update was skipped, on all ranks
    logs: dict[str, Sum] = field(default_factory=dict)


class Engine(Protocol):
    """Owns module, optimizer and progress. Every method is called by all ranks together."""

    progress: Progress

    def step(self, micro: Sequence[Batch]) -> StepStats:
        """One optimizer update from this rank's micro-batches, equally many on every rank."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Scalars of the objective over all ranks' batches, without gradients."""
        ...

    def save(self, folder: Path) -> None:
        """Write what resuming needs into an existing folder."""
        ...

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote."""
        ...

    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights and buffers on the CPU on rank 0, floating ones as fp32; empty elsewhere."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be loadable: engine kind and ZeRO stage."""
        ...


class DivergedError(SpeechSSLError):
    """The run is not learning: numbers that are not finite, or what the watchdog found."""


class InterruptedAndSaved(SpeechSSLError):
    """A signal asked the run to stop; its checkpoint is complete. EX_TEMPFAIL: run it again."""

    exit_code = 75
