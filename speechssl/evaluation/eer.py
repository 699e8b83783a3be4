"""Speaker verification scores: equal error rate, minimum detection cost, and trial lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechssl.atomic import write_text
from speechssl.errors import DataError


class Trial(NamedTuple):
    """Two utterance ids and whether one speaker said both."""

    enrol: str
    test: str
    target: bool


@dataclass(frozen=True, slots=True)
class EerReport:
    """Detection scores over a trial list; costs are normalised, 1 = as good as no system."""

    eer: float  # fraction
    threshold: float  # score where both error rates meet
    min_dcf_01: float  # prior of a target 0.01
    min_dcf_05: float  # prior of a target 0.05
    num_target: int
    num_nontarget: int

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def score(scores: Sequence[float] | np.ndarray, targets: Sequence[bool] | np.ndarray) -> EerReport:
    """Scores (N,), higher = same speaker, and the truth (N,) of each trial.

    Raises DataError when scores are not finite or one of the two kinds of trial is missing.
    """
    from sklearn.metrics import det_curve

    scores, truth = np.asarray(scores, np.float64), np.asarray(targets, bool)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise DataError(f"eer: got {scores.shape} scores for {truth.shape} trials")
    if not np.isfinite(scores).all():
        raise DataError(f"eer: {(~np.isfinite(scores)).sum()} of {len(scores)} scores not finite")
    num_target = int(truth.sum())
    if not 0 < num_target < len(truth):
        raise DataError(
            f"eer: got {num_target} target trials of {len(truth)}, expected some of both kinds"
        )
    alarm, miss, thresholds = det_curve(truth, scores)
    # The curve leaves out the two trivial systems: accept all, and reject all.
    alarm = np.concatenate([[1.0], alarm, [0.0]])
    miss = np.concatenate([[0.0], miss, [1.0]])
    thresholds = np.concatenate([[scores.min()], thresholds, [scores.max()]])
    thresholds = np.where(np.isfinite(thresholds), thresholds, scores.max())
    eer, threshold = _crossing(alarm, miss, thresholds)
    return EerReport(
        eer,
        threshold,
        _min_dcf(alarm, miss, 0.01),
        _min_dcf(alarm, miss, 0.05),
        num_target,
        len(truth) - num_target,
    )


def _crossing(alarm: np.ndarray, miss: np.ndarray, thresholds: np.ndarray) -> tuple[float, float]:
    """Where miss rises above false alarm, linear between the two operating points around it."""
    gap = miss - alarm  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    eer = miss[before] + share * (miss[after] - miss[before])
    threshold = thresholds[before] + share * (thresholds[after] - thresholds[before])
    return float(eer), float(threshold)


def _min_dcf(alarm: np.ndarray, miss: np.ndarray, prior: float) -> float:
    """Least of P miss + (1 - P) alarm over thresholds, both costs 1, over that of no system."""
    cost = prior * miss + (1.0 - prior) * alarm
    return float(cost.min() / min(prior, 1.0 - prior))


def trials(
    ids: Sequence[str], speakers: Sequence[str], seed: int = 1, max_per_class: int = 10000
) -> list[Trial]:
    """At most `max_per_class` same-speaker pairs and as many of different speakers.

    Depends on the seed and the set of utterances, not on their order. Raises DataError when
    either kind is impossible.
    """
    pairs = sorted(zip(ids, speakers, strict=True))
    by_speaker: dict[str, list[str]] = {}
    for i, speaker in pairs:
        by_speaker.setdefault(speaker, []).append(i)
    sizes = np.array([len(own) for own in by_speaker.values()])
    num_same = int((sizes * (sizes - 1) // 2).sum())
    num_other = len(pairs) * (len(pairs) - 1) // 2 - num_same
    if not (num_same and num_other):
        raise DataError(
            f"trials: {len(pairs)} utterances of {len(by_speaker)} speakers give {num_same} "
            f"same-speaker and {num_other} other pairs; expected some of both"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    same = [Trial(a, b, True) for own in by_speaker.values() for a, b in combinations(own, 2)]
    if len(same) > max_per_class:
        chosen = rng.choice(len(same), max_per_class, replace=False)
        same = [same[i] for i in sorted(chosen.tolist())]
    if num_other <= 2 * max_per_class:
        other = [(a, b) for (a, s), (b, t) in combinations(pairs, 2) if s != t]
        if len(other) > max_per_class:
            chosen = rng.choice(len(other), max_per_class, replace=False)
            other = [other[i] for i in sorted(chosen.tolist())]
    else:  # too many to list: draw until there are enough
        found: set[tuple[str, str]] = set()
        while len(found) < max_per_class:
            (a, s), (b, t) = (pairs[i] for i in sorted(rng.integers(len(pairs), size=2).tolist()))
            if s != t:
                found.add((a, b))
        other = sorted(found)
    return same + [Trial(a, b, False) for a, b in other]


def cosine_scores(
    pairs: Iterable[Trial], embeddings: Mapping[str, np.ndarray], *, centre: bool = False
) -> np.ndarray:
    """Cosine of the two embeddings (E,) of each trial, (N,).

    `centre` first takes away the mean of all embeddings given, which raw features need: they
    share a large common vector. Raises DataError for an id without an embedding.
    """
    names = {name: row for row, name in enumerate(embeddings)}
    table = np.stack([np.asarray(e, np.float64) for e in embeddings.values()])
    if centre:
        table = table - table.mean(0)
    table /= np.linalg.norm(table, axis=1, keepdims=True).clip(1e-12)
    pairs = list(pairs)
    unknown = {i for pair in pairs for i in pair[:2]} - names.keys()
    if unknown:
        raise DataError(
            f"trials: {len(unknown)} utterances have no embedding, such as {sorted(unknown)[:3]}"
        )
    left = table[[names[pair.enrol] for pair in pairs]]
    right = table[[names[pair.test] for pair in pairs]]
    return (left * right).sum(1)


def read_trials(path: str | Path) -> list[Trial]:
    """A trial list: `1 enrol test` (VoxCeleb), or `enrol test target|nontarget` (Kaldi).

    A score before the last word, as `write_scores` puts it there, is passed over.
    """
    rows: list[Trial] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        match line.split():
            case []:
                continue
            case [("0" | "1") as flag, a, b] if b not in _KINDS:
                rows.append(Trial(a, b, flag == "1"))
            case [a, b, ("target" | "nontarget") as kind]:
                rows.append(Trial(a, b, _KINDS[kind]))
            case [a, b, score, ("target" | "nontarget") as kind] if _is_number(score):
                rows.append(Trial(a, b, _KINDS[kind]))
            case _:
                raise DataError(
                    f"{path} line {number}: got '{line}', expected '1 enrol test', "
                    "'enrol test target' or 'enrol test score target' (or 0, nontarget)"
                )
    if not rows:
        raise DataError(f"{path}: no trials")
    return rows


def write_scores(
    path: str | Path, pairs: Iterable[Trial], scores: Sequence[float] | np.ndarray
) -> None:
    """One `enrol test score target|nontarget` per line, as WeSpeaker writes them."""
    lines = [
        f"{pair.enrol} {pair.test} {value:.6f} {'target' if pair.target else 'nontarget'}\n"
        for pair, value in zip(pairs, scores, strict=True)
    ]
    write_text(path, "".join(lines))


_KINDS = {"target": True, "nontarget": False}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
