"""Says when a run is dying, and of what, from the numbers that it reports.

It sees what the journal records: windows of training and validations. Nothing is judged during
warm-up, and one bad window alone is no reason: a healthy run must never be called a dying one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechssl.objectives.base import Objective

#: A loss this close to that of guessing, relative to it, is one at chance.
NEAR_CHANCE = 0.003
#: A gradient norm below this share of the largest one seen is one near zero.
NEAR_ZERO = 0.02
#: A loss above this multiple of guessing's has learnt to be wrong.
WORSE_THAN_GUESSING = 1.5
#: Deviation of unit frames, as a share of a healthy one (objectives/health.py), and of its own
#: first value, below which all frames are one.
LEAST_SPREAD, LEAST_OF_FIRST = 0.1, 0.5
#: The same finding in this many records of one split, one after the other, is told.
IN_A_ROW = 2


class Watchdog:
    """Findings of a run, each told when it begins; the same on every rank."""

    def __init__(self, objective: Objective, warmup_steps: int, patience_steps: int) -> None:
        self.chance = objective.chance()
        self.alarms = objective.alarms()
        metric, more = objective.best_metric[0]
        self.metric = None if more or metric not in self.chance else metric
        self.warmup_steps, self.patience_steps = warmup_steps, patience_steps
        self.healthy_step = 0  # of the newest record with nothing to be said about
        self._records: dict[str, list[Mapping[str, Any]]] = {"train": [], "valid": []}
        self._largest_gradient = 0.0
        self._rows: dict[tuple[str, str], int] = {}  # (split, finding) -> records in a row
        self._told: set[str] = set()

    def recall(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in what a run recorded before it was interrupted; nothing of it is told again."""
        for record in records:
            if record.get("split") in self._records:
                self.observe(int(record["step"]), record["split"], record)

    def observe(self, step: int, split: str, values: Mapping[str, Any]) -> list[str]:
        """The findings that this record begins, in words."""
        record = {"step": step} | {k: v for k, v in values.items() if isinstance(v, int | float)}
        self._records[split].append(record)
        gradient = record.get("grad_norm", 0.0)
        if math.isfinite(gradient):
            self._largest_gradient = max(self._largest_gradient, gradient)
        if step <= self.warmup_steps:
            return []
        found = dict(self._found(split, record))
        for name in [key[1] for key in self._rows if key[0] == split and key[1] not in found]:
            del self._rows[split, name]  # it was over, and would be news again
            self._told.discard(name)
        for name in found:
            self._rows[split, name] = self._rows.get((split, name), 0) + 1
        if not self._rows:
            self.healthy_step = step
        begun = [n for n in found if n not in self._told and self._rows[split, n] >= IN_A_ROW]
        self._told.update(begun)
        return [f"{found[name]} ({split}, step {step})" for name in begun]

    def _found(self, split: str, record: Mapping[str, float]) -> Iterable[tuple[str, str]]:
        """(name, what is wrong) of everything wrong with the newest record."""
        if self.metric is not None and self.metric in record:
            value, chance = record[self.metric], self.chance[self.metric]
            if value > WORSE_THAN_GUESSING * chance:
                yield (
                    "worse",
                    f"{self.metric} {value:.4g} is far above chance, {chance:.4g}: worse than "
                    "guessing; lower optim.lr, or raise the temperature",
                )
            if split == "train" and self._dead(record["step"]):
                yield (
                    "dead",
                    f"{self.metric} {value:.4g} is at chance, {chance:.4g}, and the gradient norm "
                    f"{record.get('grad_norm', math.nan):.2g} near 0 (it was "
                    f"{self._largest_gradient:.2g}) for {self.patience_steps} updates: dead; lower "
                    "optim.lr, lengthen optim.warmup_steps",
                )
        for alarm in self.alarms:
            value = record.get(alarm.metric)
            if value is not None and alarm.rings(value):
                yield alarm.metric + alarm.says, f"{alarm.metric} {value:.4g}: {alarm.says}"
        spread, healthy = record.get("std_l2"), record.get("std_l2_healthy")
        first = self._records["valid"][0].get("std_l2") if self._records["valid"] else None
        if (
            spread is not None
            and healthy is not None
            and first is not None
            and spread < min(LEAST_SPREAD * healthy, LEAST_OF_FIRST * first)
        ):
            yield (
                "frames",
                f"std_l2 {spread:.2g} (healthy near {healthy:.2g}, {first:.2g} at first): the "
                "context frames are all one; lower optim.lr",
            )

    def _dead(self, step: float) -> bool:
        """Whether all windows of the last `patience_steps` updates were at chance and still."""
        records = self._records["train"]
        since = step - self.patience_steps
        if not any(r["step"] <= since for r in records):
            return False
        window = [r for r in records if r["step"] > since]
        chance = self.chance[self.metric or ""]
        return all(
            abs(r.get(self.metric or "", math.inf) - chance) <= NEAR_CHANCE * chance
            and r.get("grad_norm", math.inf) <= NEAR_ZERO * self._largest_gradient
            for r in window
        )
