"""Starting from a model: its backbone always, its head where it is the same head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speechssl.models.bundle import locate, name_of, own_weights, read_other
from speechssl.models.folder import read_json
from speechssl.models.weights import load_weights

if TYPE_CHECKING:
    from speechssl.objectives.base import Objective


def start_from(objective: Objective, path_or_id: str | Path) -> str:
    """Copy a model's backbone into `objective`, and its head too where it is the same head.

    The same means: name of the objective, classes in their order, names and shapes of tensors.
    Returns in words what became of the head. No code that the model names is imported.
    Raises CheckpointError when the model cannot be read or is of another shape.
    """
    path = locate(path_or_id)
    other = read_other(path)
    if other is not None:
        weights, name, classes = other.weights, other.objective, other.classes
    else:
        stored = read_json(path, "config.json")["speechssl"]
        weights, classes = own_weights(path), tuple(stored.get("classes") or ())
        name = (stored.get("objective") or {}).get("name")
    inside = {
        k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")
    }
    load_weights(objective.backbone, inside, str(path))
    mine = {k: v.shape for k, v in objective.state_dict().items() if not k.startswith("backbone.")}
    head = {k: v for k, v in weights.items() if not k.startswith("backbone.")}
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
        load_weights(objective, weights, str(path))
        return "head from the same model"
    return f"head from random: {why}"
