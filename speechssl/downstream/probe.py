"""Quick frozen comparisons: a linear classifier of features pooled over time.

Nothing here sees the test data before the answer: the regularisation, and the layer where there
are several, are chosen by a split inside the training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from speechssl.downstream.readout import Pooling, pool
from speechssl.errors import DataError
from speechssl.types import Frames

#: `logistic` is multinomial logistic regression; `lda` linear discriminant analysis with Ledoit and
#: Wolf's shrinkage: closed form, and much the faster one where there are hundreds of speakers.
Classifier = Literal["logistic", "lda"]
#: Inverse regularisation strengths tried, in units where every feature has variance 1. LDA finds
#: its own.
STRENGTHS: dict[Classifier, tuple[float, ...]] = {
    "logistic": (0.001, 0.01, 0.1, 1.0),
    "lda": (1.0,),
}


def pooled(frames: Frames, kind: Pooling = "mean_std") -> np.ndarray:
    """Every state of `frames` (or x alone) pooled over valid frames, (B, L + 1, D or 2 D)."""
    states = frames.layers or (frames.x,)
    vectors = [pool(state.detach(), frames.pad, kind) for state in states]
    return torch.stack(vectors, 1).cpu().numpy()


def linear_probe(
    train_x: np.ndarray,
    train_y: Sequence[Any] | np.ndarray,
    test_x: np.ndarray,
    test_y: Sequence[Any] | np.ndarray,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    classifier: Classifier = "logistic",
    seed: int = 1,
) -> float:
    """Test accuracy of a linear classifier on standardised features.

    x is (N, D), or (N, L, D) to have the layer chosen as well; y holds class names or indices.
    With `groups` of the training items (speakers), the inner split keeps each group on one side.
    """
    train_x, test_x = _with_layers(train_x), _with_layers(test_x)
    train_y = np.asarray(train_y)
    layer, strength = _choose(train_x, train_y, groups, classifier, seed)
    fitted = _fitted(train_x[:, layer], train_y, classifier, strength)
    return fitted.score(test_x[:, layer], np.asarray(test_y))


def leave_one_group_out(
    x: np.ndarray,
    y: Sequence[Any] | np.ndarray,
    groups: Sequence[Any] | np.ndarray,
    *,
    classifier: Classifier = "logistic",
    seed: int = 1,
) -> dict[str, float]:
    """Accuracy on each group of a probe trained on all others: x (N, D) or (N, L, D).

    The settings are chosen by leaving out groups of the training side, so that they suit unseen
    groups too.
    """
    x, y, groups = np.asarray(x), np.asarray(y), np.asarray(groups)
    names = sorted(set(groups.tolist()))
    if len(names) < 2:
        raise DataError(f"leave_one_group_out: got {len(names)} group, expected at least 2")
    scores = {}
    for name in names:
        test = groups == name
        rest = groups[~test] if len(names) > 2 else None
        scores[str(name)] = linear_probe(
            x[~test], y[~test], x[test], y[test], groups=rest, classifier=classifier, seed=seed
        )
    return scores


def _with_layers(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim not in (2, 3):
        raise DataError(f"probe: features have shape {x.shape}, expected (N, D) or (N, L, D)")
    return x[:, None] if x.ndim == 2 else x


def _choose(
    x: np.ndarray,
    y: np.ndarray,
    groups: Sequence[Any] | np.ndarray | None,
    classifier: Classifier,
    seed: int,
) -> tuple[int, float]:
    """The (layer, strength) that scores best on a held-out quarter of the training data."""
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

    strengths = STRENGTHS[classifier]
    if x.shape[1] == 1 and len(strengths) == 1:
        return 0, strengths[0]
    counts = np.unique(y, return_counts=True)[1]
    if groups is not None:
        splitter = GroupShuffleSplit(1, test_size=0.25, random_state=seed)
    elif counts.min() >= 2 and len(y) >= 4 * len(counts):
        splitter = StratifiedShuffleSplit(1, test_size=0.25, random_state=seed)
    else:
        splitter = ShuffleSplit(1, test_size=0.25, random_state=seed)
    fit, check = next(iter(splitter.split(x, y, groups)))
    scores = {
        (layer, strength): _fitted(x[fit, layer], y[fit], classifier, strength).score(
            x[check, layer], y[check]
        )
        for layer in range(x.shape[1])
        for strength in strengths
    }
    return max(scores, key=lambda setting: scores[setting])


def _fitted(x: np.ndarray, y: np.ndarray, classifier: Classifier, strength: float) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if classifier == "lda":
        model: Any = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    else:
        model = LogisticRegression(C=strength, max_iter=1000)
    return make_pipeline(StandardScaler(), model).fit(x, y)
