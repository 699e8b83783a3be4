"""Which utterances an update sees: a pure function of lengths, seed and step.

The set of utterances of update k does not depend on the number of ranks or workers, every
utterance comes once per epoch, and the number of updates per epoch is constant, so that resuming
at step k costs one sort and replays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from speechssl.rng import generator


class Planner:
    """Plans epochs over utterances of given lengths (in samples, or any other cost).

    An update holds about `update` samples; a pool of `bucket_updates` updates is sorted by length
    so that an update's utterances are about equally long, then the pool's updates are shuffled.
    Where lengths change from epoch to epoch, `in_epoch(epoch)` gives them; `lengths` still decides
    how many updates there are.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        update: int,
        batch: int,
        *,
        bucket_updates: int = 16,
        seed: int = 1,
        in_epoch: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        if len(lengths) == 0 or int(lengths.min()) <= 0:
            raise ValueError("planner: expected at least one utterance and positive lengths")
        if int(lengths.max()) > batch:
            raise ValueError(
                f"planner: longest utterance has {int(lengths.max())} samples, "
                f"a micro-batch holds {batch}"
            )
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch = batch
        self.bucket_updates = bucket_updates
        self.seed = seed
        self.updates_per_epoch = min(max(1, int(self.lengths.sum() // update)), len(lengths))
        self._in_epoch = in_epoch
        self._epoch: tuple[int, np.ndarray, list[np.ndarray]] | None = None

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, index within it) of update `step`, counted from 0."""
        return divmod(step, self.updates_per_epoch)

    def update(self, step: int) -> np.ndarray:
        """Indices of the utterances of update `step`, longest first."""
        return self._plan(step)[1]

    def micro_batches(self, step: int, world: int) -> list[list[np.ndarray]]:
        """Update `step` divided: [rank][micro-batch] -> indices; empty arrays keep ranks equal."""
        lengths, order = self._plan(step)
        return split(order, lengths, self.batch, world)

    def padding_share(self, steps: int = 50) -> float:
        """Share of padding in the micro-batches of the first updates, one rank."""
        real = padded = 0
        for step in range(min(steps, self.updates_per_epoch)):
            lengths, order = self._plan(step)
            for part in split(order, lengths, self.batch, 1)[0]:
                real += int(lengths[part].sum())
                padded += int(lengths[part].max()) * len(part)
        return 1 - real / padded

    def _plan(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of all utterances in the epoch of update `step`, and the indices in it."""
        epoch, index = self.locate(step)
        if self._epoch is None or self._epoch[0] != epoch:
            lengths = self.lengths if self._in_epoch is None else self._in_epoch(epoch)
            self._epoch = (epoch, lengths, self._plan_epoch(epoch, lengths))
        return self._epoch[1], self._epoch[2][index]

    def _plan_epoch(self, epoch: int, lengths: np.ndarray) -> list[np.ndarray]:
        rng = generator(self.seed, epoch, "order")
        order = rng.permutation(len(lengths))
        pools = math.ceil(self.updates_per_epoch / self.bucket_updates)
        sizes = [len(part) for part in np.array_split(np.arange(self.updates_per_epoch), pools)]
        updates: list[np.ndarray] = []
        for pool, size in zip(_cut(order, lengths, sizes), sizes, strict=True):
            if self.bucket_updates > 1:
                pool = pool[np.argsort(-lengths[pool], kind="stable")]
            parts = _cut(pool, lengths, [1] * size)
            updates.extend(parts[i] for i in rng.permutation(size))
        return [part[np.argsort(-lengths[part], kind="stable")] for part in updates]


def _cut(order: np.ndarray, lengths: np.ndarray, shares: list[int]) -> list[np.ndarray]:
    """Cut `order` into consecutive parts whose total lengths are as `shares`, none empty."""
    ends = lengths[order].cumsum()
    middles = ends - lengths[order] / 2
    bounds = np.cumsum(shares)[:-1] / sum(shares)
    cuts = np.searchsorted(middles, bounds * ends[-1])
    # A part holds at least as many utterances as updates will be cut from it.
    low = np.cumsum(shares)[:-1]
    high = len(order) - (sum(shares) - low)
    cuts = np.clip(np.maximum.accumulate(cuts), low, high)
    for i in range(1, len(cuts)):
        cuts[i] = max(cuts[i], cuts[i - 1] + shares[i])
    return np.split(order, np.minimum(cuts, high))


def split(order: np.ndarray, lengths: np.ndarray, batch: int, world: int) -> list[list[np.ndarray]]:
    """Divide utterances sorted by length over `world` ranks, equally many micro-batches each.

    A micro-batch holds at most `batch` samples, padding counted. As few per rank as fit; among
    those the division whose largest micro-batch is smallest. Ranks get about equal work.
    """
    rounds = 1
    while True:
        best = _smallest_cap(order, lengths, batch, rounds * world)
        if best is not None:
            break
        rounds += 1
    parts = _pack(order, lengths, best)
    cost = [int(lengths[part].max()) * len(part) for part in parts]
    ranks: list[list[np.ndarray]] = [[] for _ in range(world)]
    load = [0] * world
    for i in np.argsort(cost)[::-1]:
        rank = min((r for r in range(world) if len(ranks[r]) < rounds), key=lambda r: load[r])
        ranks[rank].append(parts[i])
        load[rank] += cost[i]
    for rank in ranks:
        rank.extend([order[:0]] * (rounds - len(rank)))
    return ranks


def _smallest_cap(order: np.ndarray, lengths: np.ndarray, batch: int, parts: int) -> int | None:
    """Smallest cap, of at most `batch` samples, that needs no more than `parts` parts."""
    if len(_pack(order, lengths, batch)) > parts:
        return None
    low, high = int(lengths[order].max()), batch
    while low < high:
        middle = (low + high) // 2
        if len(_pack(order, lengths, middle)) <= parts:
            high = middle
        else:
            low = middle + 1
    return high


def _pack(order: np.ndarray, lengths: np.ndarray, cap: int) -> list[np.ndarray]:
    """Consecutive parts of an order sorted longest first, each of at most `cap` padded samples."""
    parts, first = [], 0
    while first < len(order):
        size = max(1, cap // int(lengths[order[first]]))
        parts.append(order[first : first + size])
        first += size
    return parts
