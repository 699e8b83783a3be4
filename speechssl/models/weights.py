"""Tensors into a model: exactly its own, or an error that says which are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from speechssl.errors import CheckpointError


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load exactly the model's tensors. Raises CheckpointError for anything else, or for NaN."""
    check_weights(model, weights, where)
    model.load_state_dict(weights)


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError unless `weights` are exactly the model's, by name, shape and value."""
    expected = model.state_dict()
    missing, extra = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors missing: {some(missing)}")
    if extra:
        problems.append(f"{len(extra)} tensors unexpected: {some(extra)}")
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ][:5]
    if not problems:
        bad = [k for k, v in weights.items() if not bool(torch.isfinite(v).all())]
        if bad:
            problems.append(f"NaN or Inf in {some(bad)}")
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")


def some(names: Iterable[str]) -> str:
    """Up to five names, enough to see the pattern."""
    shown = sorted(names)
    return ", ".join(shown[:5]) + (" ..." if len(shown) > 5 else "")
