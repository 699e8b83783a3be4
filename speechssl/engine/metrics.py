"""Metrics as sums and counts: they add up over micro-batches, updates and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from speechssl.engine import dist
from speechssl.types import Sum


def add_sums(into: MutableMapping[str, Sum], sums: Mapping[str, Sum]) -> None:
    """Add sums of any shape, name by name, in float64 on the device of the newcomer."""
    for name, (total, count) in sums.items():
        total, count = total.detach().double(), count.detach().double()
        if name in into:
            total = total + into[name].total.to(total.device)
            count = count + into[name].count.to(count.device)
        into[name] = Sum(total, count)


class Metrics:
    """Sums of this rank since the last report."""

    def __init__(self) -> None:
        self.sums: dict[str, Sum] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add one sum and its count."""
        add_sums(self.sums, {name: Sum(torch.as_tensor(total), torch.as_tensor(count))})

    def merge(self, sums: Mapping[str, Sum]) -> None:
        """Add the logs of a loss."""
        add_sums(self.sums, sums)

    def reduced(self) -> dict[str, Sum]:
        """Sums over all ranks, float64 on the CPU; called by all ranks together."""
        flat = {f"{name}/total": s.total for name, s in self.sums.items()}
        flat |= {f"{name}/count": s.count for name, s in self.sums.items()}
        everyone = dist.all_reduce_sum(flat)
        names = sorted(n.removesuffix("/total") for n in everyone if n.endswith("/total"))
        return {n: Sum(everyone[f"{n}/total"], everyone[f"{n}/count"]) for n in names}

    def scalars(
        self, summary: Callable[[Mapping[str, Sum]], Mapping[str, float]]
    ) -> dict[str, float]:
        """Reduce, then what `summary` makes of it; `loss` is always there once it was added."""
        sums = self.reduced()
        loss = sums.get("loss")
        own = {"loss": float(loss.total) / max(float(loss.count), 1.0)} if loss else {}
        return own | {name: float(value) for name, value in summary(sums).items()}

    def clear(self) -> None:
        """Start the next window."""
        self.sums = {}

    def state(self) -> dict[str, list[Any]]:
        """The window over all ranks in plain numbers, for a checkpoint.

        Rank 0 goes on with the whole sum and the others with nothing, as they would after a
        restart, so that saving and restarting leave the same numbers behind.
        """
        sums = self.reduced()
        self.sums = sums if dist.is_main() else {}
        return {name: [s.total.tolist(), s.count.tolist()] for name, s in sums.items()}

    def restore(self, state: Mapping[str, list[Any]]) -> None:
        """Take up a window from a checkpoint."""
        self.clear()
        if dist.is_main():
            for name, (total, count) in state.items():
                as_double = (torch.tensor(v, dtype=torch.float64) for v in (total, count))
                self.sums[name] = Sum(*as_double)
