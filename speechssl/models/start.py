"""Starting from a model: its backbone always, its head where it is the same head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.models.bundle import load_weights, locate, name_of, named_weights, plain_head
from speechssl.models.folder import WEIGHTS, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from speechssl.objectives.base import Objective


def start_from(objective: Objective, path_or_id: str | Path) -> str:
    """Copy a model's backbone into `objective`, and its head too where it is the same head.

    The same means: name of the objective, classes in their order, names and shapes of tensors.
    Returns in words what became of the head. No code that the model names is imported.
    Raises CheckpointError when the model cannot be read or is of another shape.
    """
    folder = locate(path_or_id)
    config = read_json(folder, "config.json")
    weights = named_weights(folder, config)
    inside = {
        k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")
    }
    load_weights(objective.backbone, inside, str(folder / WEIGHTS))
    mine = {k: v.shape for k, v in objective.state_dict().items() if not k.startswith("backbone.")}
    head = {k: v for k, v in weights.items() if not k.startswith("backbone.")}
    name, classes = _head_of(folder, config, weights)
    if not mine:
        return "no head"
    if name is None or not head:
        why = "the model has none"
    elif name != name_of(objective):
        why = f"the model's is for {name}"
    elif classes != objective.classes:
        why = f"the model's is for {len(classes)} other classes"
    elif mine != {k: v.shape for k, v in head.items()}:
        why = "the model's has other sizes"
    else:
        load_weights(objective, weights, str(folder / WEIGHTS))
        return "head from the same model"
    return f"head from random: {why}"


def _head_of(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[str | None, tuple[str, ...]]:
    """Name of the objective, None where we know none, and the classes."""
    stored = config.get("speechssl")
    if stored is None:
        return plain_head(folder, config, weights)
    about = stored.get("objective") or {}
    return about.get("name"), tuple(stored.get("classes") or ())
