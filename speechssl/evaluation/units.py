"""What discrete units stand for: purity and mutual information with phones, words or speakers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

Span = tuple[str, float, float]  # what, from, to (seconds)


def names_at(spans: Iterable[Span], times_sec: np.ndarray) -> np.ndarray:
    """The name of the span that each moment lies in, (T,) of str; "" between them."""
    names = np.full(len(times_sec), "", dtype=object)
    for name, start, stop in spans:
        names[(times_sec >= start) & (times_sec < stop)] = name
    return names


class Joint:
    """How often each unit meets each reference name; adds up over utterances."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.columns: dict[Hashable, np.ndarray] = {}

    def add(self, units: np.ndarray, names: Sequence[Hashable] | np.ndarray) -> None:
        """Count units (T,) with the name at each frame (T,)."""
        names = np.asarray(names, dtype=object)
        for name in set(names.tolist()):
            hits = np.bincount(units[names == name], minlength=self.units)
            self.columns[name] = self.columns.get(name, np.zeros(self.units, np.int64)) + hits

    def table(self) -> np.ndarray:
        """Counts (units, names)."""
        return np.stack(list(self.columns.values()), 1) if self.columns else np.zeros((0, 0))


def quality(counts: np.ndarray) -> dict[str, float]:
    """Of joint counts (units V, names P), as HuBERT measures clusters (2106.07447, sec. V-B).

    purity: share of frames whose name is the commonest of their unit; cluster_purity: share whose
    unit is the commonest of their name; pnmi: I(name; unit) / H(name), how much of the doubt about
    the name the unit removes. Nothing for an empty table or a single name.
    """
    total = counts.sum()
    if total == 0 or (counts.sum(0) > 0).sum() < 2:
        return {}
    joint = counts / total
    units, names = joint.sum(1), joint.sum(0)
    seen = joint > 0
    independent = np.outer(units, names)
    information = float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())
    return {
        "purity": float(joint.max(1).sum()),
        "cluster_purity": float(joint.max(0).sum()),
        "pnmi": information / entropy(names),
    }


def entropy(shares: np.ndarray) -> float:
    """In nats, of shares or counts (n,)."""
    p = shares[shares > 0] / shares.sum()
    return float(-(p * np.log(p)).sum())


def usage(counts: np.ndarray, frames_hz: float, changes: int) -> dict[str, Any]:
    """How units (counts (V,)) are used: perplexity, empty ones, the commonest, their duration.

    `changes` is how often a unit follows another one or begins an utterance.
    """
    total = int(counts.sum())
    return {
        "frames": total,
        "perplexity": float(np.exp(entropy(counts))) if total else 0.0,
        "empty": int((counts == 0).sum()),
        "top_share": float(counts.max() / total) if total else 0.0,
        "mean_sec": total / max(changes, 1) / frames_hz,
    }
