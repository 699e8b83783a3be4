"""One optimizer update, the same arithmetic for every engine.

A loss is a sum over targets. The number of targets of the whole update is known before the first
forward pass, so each micro-batch is divided by that global count and the split over micro-batches
and ranks changes nothing but rounding.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speechssl.engine import dist
from speechssl.engine.base import DivergedError, StepStats
from speechssl.engine.config import EngineConfig, OptimConfig
from speechssl.engine.metrics import Metrics, add_sums
from speechssl.engine.optim import LossScale
from speechssl.engine.schedule import lr_at
from speechssl.errors import ConfigError
from speechssl.rng import seed_from
from speechssl.types import Batch, Loss, Progress, Sum

if TYPE_CHECKING:
    from speechssl.objectives.base import Objective

log = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def with_precision(cfg: EngineConfig, device: torch.device) -> EngineConfig:
    """`cfg` with `auto` replaced by what is fast on `device`: bf16 or fp32.

    A processor without bf16 instructions emulates them, ten times slower than fp32 (measured on
    one with AVX2 only).
    """
    if cfg.precision != "auto":
        return cfg
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return replace(cfg, precision="bf16" if native else "fp32")


class UpdateEngine(ABC):
    """The order of an update; subclasses say how to run forward, backward and the optimizer."""

    #: Whether a forward pass needs all ranks (sharded parameters are gathered on the way).
    collective_forward = False

    def __init__(
        self,
        objective: Objective,
        optim: OptimConfig,
        cfg: EngineConfig,
        device: torch.device,
        progress: Progress,
    ) -> None:
        if cfg.precision == "fp16" and device.type == "cpu":
            raise ConfigError(
                "engine.precision is fp16, but there is no GPU and CPUs do not train in fp16; "
                "set engine.precision fp32 or bf16"
            )
        cfg = with_precision(cfg, device)
        self.objective = objective.to(device)
        self.optim, self.cfg, self.device = optim, cfg, device
        self.progress = progress
        self.scale = LossScale(2.0**16, dynamic=True) if cfg.precision == "fp16" else LossScale()
        self.nonfinite_in_a_row = 0

    # What an engine supplies.

    @abstractmethod
    def _forward(self, batch: Batch) -> Loss:
        """Loss of a batch on the device, under the configured precision."""

    @abstractmethod
    def _backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a loss already divided by the global count (rank sums wanted)."""

    @abstractmethod
    def _apply(self, lr: float) -> float:
        """Clip and update unless the gradient norm is not finite; return that norm, unscaled."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what resuming needs into an existing folder."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take up what `save` wrote."""

    @abstractmethod
    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights and buffers on the CPU on rank 0, floating ones as fp32; empty elsewhere."""

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be loadable."""
        return {"kind": self.cfg.kind, "zero_stage": self.cfg.zero_stage}

    # The update.

    def step(self, micro: Sequence[Batch]) -> StepStats:
        """One optimizer update from this rank's micro-batches.

        Raises ConfigError when a batch lacks a field the objective needs; RuntimeError when the
        ranks disagree on the step or the number of micro-batches, or a loss counts other targets
        than its batch; DivergedError after too many skipped updates.
        """
        step = self.progress.step
        num_targets = self._global_targets(micro)
        for batch in micro:
            self.objective.check(batch)
        self.objective.train()
        self.objective.begin_step(self.progress)
        stats = StepStats(Sum(self._zero(), self._zero()), math.inf, lr_at(self.optim, step), True)
        checks: list[Tensor] = []  # per micro-batch: loss finite, targets as announced
        losses_finite = [True]
        for i, batch in enumerate(micro):
            torch.manual_seed(seed_from(self.progress.seed, step, dist.rank(), i, "dropout"))
            loss = self._forward(batch.to(self.device))
            total = loss.total
            agrees = loss.count.to(self.device) == batch.num_targets
            if batch.num_targets == 0:  # a filler that keeps the ranks in step
                total, agrees = total * 0.0, torch.ones_like(agrees)
            else:
                add_sums(stats.logs, loss.logs)
                stats.loss = Sum(
                    stats.loss.total + total.detach(), stats.loss.count + batch.num_targets
                )
            checks.append(torch.stack([torch.isfinite(total.detach()), agrees]))
            last = i == len(micro) - 1
            if last:
                losses_finite = self._inspect(checks, micro)
                if dist.any_true(not all(losses_finite)):
                    # One NaN in the last backward makes every rank and every ZeRO stage drop the
                    # whole update by the same road that a NaN gradient takes.
                    total = total * math.nan
            self._backward(total / num_targets, last=last)
        stats.grad_norm = self._apply(stats.lr)
        stats.finite = math.isfinite(stats.grad_norm)
        self.progress = replace(self.progress, step=step + 1)
        self._watch(stats.finite, losses_finite, micro)
        if stats.finite:
            self.objective.after_step(self.progress)
        return stats

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def _global_targets(self, micro: Sequence[Batch]) -> int:
        """Targets of the update over all ranks; also finds ranks that have drifted apart."""
        if not micro:
            raise RuntimeError("an update needs at least one micro-batch on every rank")
        mine = (float(self.progress.step), float(len(micro)))
        targets, *sums = dist.sum_numbers(float(sum(b.num_targets for b in micro)), *mine)
        if any(total != dist.world() * own for total, own in zip(sums, mine, strict=True)):
            raise RuntimeError(
                f"rank {dist.rank()} is at step {self.progress.step} with {len(micro)} micro-"
                f"batches, but the average over {dist.world()} ranks is step "
                f"{sums[0] / dist.world():g} with {sums[1] / dist.world():g}; all ranks need the "
                "same manifest, seed and versions"
            )
        return max(round(targets), 1)

    def _inspect(self, checks: Sequence[Tensor], micro: Sequence[Batch]) -> list[bool]:
        """Whether each loss of this rank is finite; a wrong count is an error at once.

        One transfer from the device for all micro-batches.
        """
        finite: list[bool] = []
        for (fine, agrees), batch in zip(torch.stack(list(checks)).tolist(), micro, strict=True):
            if not agrees:
                raise RuntimeError(
                    f"{type(self.objective).__name__} counted other targets at step "
                    f"{self.progress.step} than its plan announced, {batch.num_targets}; "
                    f"forward and plan must agree. Utterances: {_names(batch)}"
                )
            finite.append(fine)
        return finite

    def _watch(self, finite: bool, losses_finite: Sequence[bool], micro: Sequence[Batch]) -> None:
        """Report a skipped update; give up after too many in a row."""
        if self.scale.update(finite) and all(losses_finite):
            return  # fp16 feeling for its range is no failure
        if finite:
            self.nonfinite_in_a_row = 0
            return
        self.nonfinite_in_a_row += 1
        bad = [b for b, fine in zip(micro, losses_finite, strict=True) if not fine]
        log.warning(
            "rank %d: update %d skipped, %s not finite (%d in a row); utterances of this rank: %s",
            dist.rank(),
            self.progress.step,
            "a loss is" if bad else "the gradient or another rank's loss is",
            self.nonfinite_in_a_row,
            "; ".join(map(_names, bad or micro)),
        )
        if self.nonfinite_in_a_row >= self.cfg.max_nonfinite_steps:
            raise DivergedError(
                f"{self.nonfinite_in_a_row} updates in a row had a loss or gradient that is not "
                f"finite, up to step {self.progress.step}; no weight was touched by them. Try a "
                "lower optim.lr, a longer warm-up or optim.clip_norm, and check the utterances "
                "named in the warnings"
            )

    # Evaluation.

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Scalars of the objective over all ranks' batches."""
        sums = Metrics()
        self.objective.eval()
        torch.manual_seed(seed_from(self.progress.seed, self.progress.step, dist.rank(), "eval"))
        for batch in self._in_step(batches) if self.collective_forward else batches:
            loss = self._forward(batch.to(self.device))
            if batch.num_targets:
                sums.add("loss", loss.total, loss.count)
                sums.merge(loss.logs)
        self.objective.train()
        return sums.scalars(self.objective.summary)

    def _in_step(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, followed by uncounted repeats until every rank has had its last one."""
        source, filler = iter(batches), None
        while True:
            batch = next(source, None)
            have = dist.gather(batch is not None)
            if not any(have):
                return
            if batch is not None:
                filler = replace(batch, num_targets=0)
                yield batch
                continue
            if filler is None:
                raise RuntimeError(
                    f"rank {dist.rank()} has no validation batch, but at ZeRO stage 3 every rank "
                    "needs one; give more validation utterances or use engine.zero_stage 2"
                )
            yield filler


def _names(batch: Batch, most: int = 20) -> str:
    shown = ", ".join(batch.ids[:most])
    return shown if len(batch.ids) <= most else f"{shown} and {len(batch.ids) - most} more"


def to_export(tensor: Tensor) -> Tensor:
    """A copy on the CPU that does not change with training, fp32 where floating."""
    tensor = tensor.detach()
    return tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).clone()
