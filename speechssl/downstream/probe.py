"""Quick frozen comparisons: a linear classifier of features pooled over time.

Nothing here sees the test data before the answer: the regularisation, and the layer where one has
to be chosen, are found by a split inside the training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from speechssl.errors import DataError
from speechssl.models.blocks.pool import Pooling, pool
from speechssl.types import Frames

#: `logistic` is multinomial logistic regression on one layer; `weighted` the same on a learnt
#: weighted sum of all layers; `lda` linear discriminant analysis with Ledoit and Wolf's shrinkage
#: on one layer: closed form, and much the fastest where there are hundreds of speakers.
Classifier = Literal["logistic", "weighted", "lda"]
#: Inverse regularisation strengths tried (C of scikit-learn), in units where every feature has
#: variance 1. LDA finds its own.
STRENGTHS: dict[Classifier, tuple[float, ...]] = {
    "logistic": (0.001, 0.01, 0.1, 1.0),
    "weighted": (0.1, 1.0, 10.0),
    "lda": (1.0,),
}


def pooled(frames: Frames, kind: Pooling = "mean_std") -> np.ndarray:
    """Every state of `frames` (or x alone) pooled over valid frames, (B, L + 1, D or 2 D)."""
    states = frames.layers or (frames.x,)
    vectors = [pool(state.detach(), frames.pad, kind) for state in states]
    return torch.stack(vectors, 1).cpu().numpy()


@dataclass(frozen=True)
class Probe:
    """A fitted classifier and the layer it reads (all of them for `weighted`)."""

    layer: int | slice
    model: Any

    def score(self, x: np.ndarray, y: Sequence[Any] | np.ndarray) -> float:
        """Share of x, (N, D) or (N, L, D), whose class is named rightly."""
        return self.model.score(_with_layers(x)[:, self.layer], np.asarray(y))


def fit_probe(
    x: np.ndarray,
    y: Sequence[Any] | np.ndarray,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    classifier: Classifier = "logistic",
    seed: int = 1,
) -> Probe:
    """A linear classifier of standardised features x (N, D), or (N, L, D) to choose the layer too.

    y holds class names or indices. With `groups` of the items (speakers), the inner split that
    layer and regularisation are chosen on keeps each group on one side.
    """
    x, y = _with_layers(x), np.asarray(y)
    layer, strength = _choose(x, y, groups, classifier, seed)
    return Probe(layer, _fitted(x[:, layer], y, classifier, strength))


class WeightedLogistic:
    """Logistic regression on sum_l softmax(alpha)_l x_l of layers x (N, L, D), alpha learnt too.

    On means over time this is SUPERB's speaker identification (arXiv 2105.01051, section 3: a
    weighted sum of layers, a linear projection, the mean over time, a linear classifier), for a
    mean commutes with linear maps. Differs: channels are standardised by the training data, there
    is an L2 penalty, and L-BFGS runs on all data at once instead of SGD for a set number of steps.
    """

    def __init__(self, strength: float, max_iter: int = 100) -> None:
        self.strength, self.max_iter = strength, max_iter

    def fit(self, x: np.ndarray, y: np.ndarray) -> WeightedLogistic:
        """Fit to x (N, L, D) and N class names."""
        self.classes, target = np.unique(y, return_inverse=True)
        self.mean, self.std = x.mean(0), x.std(0)
        self.std[self.std < 1e-8] = 1.0  # a constant channel tells nothing
        scaled, targets = self._scaled(x), torch.from_numpy(target)
        alpha = torch.zeros(x.shape[1], requires_grad=True)
        weight = alpha.new_zeros((x.shape[2], len(self.classes))).requires_grad_()
        bias = alpha.new_zeros(len(self.classes)).requires_grad_()
        search = torch.optim.LBFGS(
            [alpha, weight, bias], max_iter=self.max_iter, line_search_fn="strong_wolfe"
        )
        penalty = 0.5 / (self.strength * len(x))

        def loss() -> torch.Tensor:
            search.zero_grad()
            logits = _mix(scaled, alpha) @ weight + bias
            value = torch.nn.functional.cross_entropy(logits, targets)
            value = value + penalty * weight.square().sum()
            value.backward()
            return value

        search.step(loss)
        self.alpha, self.weight, self.bias = alpha.detach(), weight.detach(), bias.detach()
        return self

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of x (N, L, D) whose likeliest class is y."""
        best = (_mix(self._scaled(x), self.alpha) @ self.weight + self.bias).argmax(1)
        return float((self.classes[best.numpy()] == y).mean())

    def _scaled(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((x - self.mean) / self.std).float()


def _mix(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nld,l->nd", x, alpha.softmax(0))


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
        fitted = fit_probe(x[~test], y[~test], groups=rest, classifier=classifier, seed=seed)
        scores[str(name)] = fitted.score(x[test], y[test])
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
) -> tuple[int | slice, float]:
    """The (layer, strength) that scores best on a held-out quarter of the training data."""
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit

    layers = [slice(None)] if classifier == "weighted" else list(range(x.shape[1]))
    strengths = STRENGTHS[classifier]
    if len(layers) == len(strengths) == 1:
        return layers[0], strengths[0]
    counts = np.unique(y, return_counts=True)[1]
    if groups is not None:
        splitter = GroupShuffleSplit(1, test_size=0.25, random_state=seed)
    elif counts.min() >= 2 and len(y) >= 4 * len(counts):
        splitter = StratifiedShuffleSplit(1, test_size=0.25, random_state=seed)
    else:
        splitter = ShuffleSplit(1, test_size=0.25, random_state=seed)
    fit, check = next(iter(splitter.split(x, y, groups)))
    settings = [(layer, strength) for layer in layers for strength in strengths]

    def score(setting: tuple[int | slice, float]) -> float:
        layer, strength = setting
        fitted = _fitted(x[fit][:, layer], y[fit], classifier, strength)
        return fitted.score(x[check][:, layer], y[check])

    return max(settings, key=score)


def _fitted(x: np.ndarray, y: np.ndarray, classifier: Classifier, strength: float) -> Any:
    if classifier == "weighted":
        return WeightedLogistic(strength).fit(x, y)
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if classifier == "lda":
        model: Any = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    else:
        model = LogisticRegression(C=strength, max_iter=1000)
    return make_pipeline(StandardScaler(), model).fit(x, y)
