"""The contract of everything that can be trained: SSL objectives and supervised heads alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.types import Batch, Loss, Plan, Progress, Sum, Utterance

PlanFn = Callable[[np.ndarray, Sequence[np.random.Generator], bool], Plan]


class Alarm(NamedTuple):
    """A level of a logged metric beyond which training has gone wrong, and how."""

    metric: str
    says: str
    low: float = -math.inf  # rings below
    high: float = math.inf  # rings above

    def rings(self, value: float) -> bool:
        """Whether `value` lies beyond."""
        return value < self.low or value > self.high


class Objective(nn.Module):
    """Wraps a backbone and turns a batch into a loss; runs in any loop, knows no engine.

    A subclass sets `Config` and `needs`, and defines `plan` and `forward`. Its file name is its
    config name. Contract tests run over every subclass found.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of the objective; defaults are the paper's base set-up."""

    #: Fields of Batch it reads beyond the waveform; see `check`.
    needs: ClassVar[frozenset[str]] = frozenset()
    #: What validation is judged by: keys of `summary`, and whether more is better. Each further one
    #: decides where those before it are equal.
    best_metric: tuple[tuple[str, bool], ...] = (("loss", False),)
    #: Which field of the training manifest the classes come from: characters, speakers, the classes
    #: of frame labels, or none.
    classes_from: ClassVar[Literal["text", "speaker", "labels"] | None] = None
    #: Whether a moving average of the weights teaches (models/blocks/ema.py): not under ZeRO 3.
    has_teacher: ClassVar[bool] = False
    #: How many of the labels within a frame are read, evenly spaced, where classes are of labels.
    labels_per_frame: int = 1

    def __init__(self, backbone: Backbone, cfg: Any, classes: Sequence[str] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.cfg = cfg
        self.classes = tuple(classes)

    @property
    def name(self) -> str:
        """Its name in complaints, that of its file."""
        return type(self).__module__.rpartition(".")[2]

    def require_masking(self) -> None:
        """Raise ConfigError where the context network takes no masked input."""
        if self.backbone.cfg.context != "transformer":
            raise ConfigError(
                f"objective {self.name} masks the context network's input; backbone.context is "
                f"'{self.backbone.cfg.context}', expected 'transformer'"
            )

    def know_training_data(self, utterances: Sequence[Utterance]) -> None:
        """Called once, before training begins or weights are read: what labels alone can tell.

        The same on every rank. The default does nothing.
        """

    @staticmethod
    def plan(
        cfg: Any,
        dim: int,
        frame_lens: np.ndarray,
        rngs: Sequence[np.random.Generator],
        train: bool,
    ) -> Plan:
        """Draw the random decisions of a micro-batch in a loader worker.

        `frame_lens` is (B,) frames, `rngs` one generator per utterance, `dim` the backbone's D.
        The default draws nothing and counts utterances.
        """
        return Plan(num_targets=len(frame_lens))

    def plan_fn(self) -> PlanFn:
        """`plan` bound to this objective's settings, picklable for loader workers."""
        return partial(type(self).plan, self.cfg, self.backbone.dim)

    def check(self, batch: Batch) -> None:
        """Raise ConfigError when a field that the objective needs is not in the batch."""
        for field in sorted(self.needs):
            if getattr(batch, field, None) is None:
                raise ConfigError(
                    f"objective {type(self).__name__} needs batches with '{field}', which this one "
                    "lacks; masks and negatives come from its `plan`, tokens and speakers from the "
                    "manifest's text and speaker"
                )

    def begin_step(self, progress: Progress) -> None:
        """Called before the forward passes of an update: schedules and LayerDrop from the step."""
        self.backbone.begin_step(progress.seed, progress.step)

    def forward(self, batch: Batch) -> Loss:
        """The loss of one micro-batch as a sum and a count."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def after_step(self, progress: Progress) -> None:
        """Called after an update: EMA teachers, queues. The default does nothing."""

    def summary(self, sums: Mapping[str, Sum]) -> dict[str, float]:
        """Scalars from reduced logs: total / count for scalars; histograms need an override."""
        return {
            name: float(s.total) / max(float(s.count), 1.0)
            for name, s in sums.items()
            if s.total.ndim == 0
        }

    def chance(self) -> dict[str, float]:
        """Level of each logged metric that means nothing has been learnt, where one is known."""
        return {}

    def alarms(self) -> tuple[Alarm, ...]:
        """Levels of logged metrics that no healthy run reaches; those of all runs are watched."""
        return ()

    def exported(self) -> Backbone:
        """What downstream work loads."""
        return self.backbone
