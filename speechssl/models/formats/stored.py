"""What a model of another toolkit holds, under our names, whichever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor

from speechssl import lookup
from speechssl.models.backbone import Backbone, build_backbone
from speechssl.models.presets import BackboneConfig
from speechssl.models.weights import load_weights

if TYPE_CHECKING:
    from speechssl.objectives.base import Objective


@dataclass(frozen=True)
class Stored:
    """A checkpoint of another toolkit: its network, its tensors, and what became of its head."""

    kind: str  # fairseq, torchaudio, or a model type of Hugging Face
    cfg: BackboneConfig
    backbone: dict[str, Tensor]
    head: dict[str, Tensor] = field(default_factory=dict)  # of `objective`
    objective: str | None = None  # which of ours the head is; None: none of them
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `objective`
    classes: tuple[str, ...] = ()  # by output index
    dropped: tuple[str, ...] = ()  # tensors left out on purpose
    told: tuple[str, ...] = ()  # in words: what was assumed, and why a head was left out

    @property
    def weights(self) -> dict[str, Tensor]:
        """All tensors under the names of an Objective."""
        return {f"backbone.{k}": v for k, v in self.backbone.items()} | self.head


def as_model(stored: Stored, where: str) -> Objective | Backbone:
    """Backbone, or objective where the head is one of ours, with the weights of a checkpoint.

    Raises CheckpointError when the tensors are not exactly the network's.
    """
    backbone = build_backbone(stored.cfg)
    if stored.objective is None:
        load_weights(backbone, stored.backbone, where)
        return backbone
    cls = objective_class(stored.objective)
    objective = cls(backbone, cls.Config(**stored.settings), stored.classes)
    load_weights(objective, stored.weights, where)
    return objective


def objective_class(name: str) -> type[Objective]:
    """The class of the objective called `name`."""
    # Found by name, as every plugin is: models stand below the objectives and never import them.
    base = import_module("speechssl.objectives.base").Objective
    return lookup.find(name, base)
