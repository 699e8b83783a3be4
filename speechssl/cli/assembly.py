"""From a resolved configuration to manifests, classes, backbone and objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from speechssl import lookup
from speechssl.data.manifest import read_manifest
from speechssl.errors import DataError
from speechssl.models.backbone import Backbone, build_backbone
from speechssl.objectives.base import Objective

if TYPE_CHECKING:
    from speechssl.config import Config
    from speechssl.data.tokens import Characters
    from speechssl.types import Utterance


def objective_class(config: Config) -> type[Objective]:
    """The class behind `objective.name`."""
    return lookup.find(config.objective.name, Objective)


def read_manifests(paths: Sequence[str]) -> list[Utterance]:
    """The utterances of several manifests, joined.

    Raises DataError when two of them hold the same id.
    """
    joined: list[Utterance] = []
    origin: dict[str, str] = {}
    for path in paths:
        for utterance in read_manifest(path):
            first = origin.setdefault(utterance.id, path)
            if first != path:
                raise DataError(f"id '{utterance.id}' is in {first} and in {path}; expected once")
            joined.append(utterance)
    return joined


def class_names(cls: type[Objective], utterances: Sequence[Utterance]) -> tuple[str, ...]:
    """What the head of `cls` tells apart: characters, speakers, or () for SSL objectives.

    Raises DataError when the manifest lacks the field they come from.
    """
    if cls.classes_from is None:
        return ()
    values = [value for u in utterances if (value := getattr(u, cls.classes_from))]
    if not values:
        raise DataError(
            f"objective {cls.__module__.rpartition('.')[2]} needs '{cls.classes_from}', which none "
            f"of the {len(utterances)} utterances has; add it to the manifest"
        )
    if cls.classes_from == "speaker":
        return tuple(sorted(set(values)))
    from speechssl.data.tokens import Characters

    return Characters.from_texts(values).vocab


def target_readers(
    cls: type[Objective], classes: Sequence[str]
) -> tuple[Characters | None, dict[str, int] | None]:
    """What turns transcripts or speakers into targets: (tokenizer, speaker -> class index)."""
    if cls.classes_from == "text":
        from speechssl.data.tokens import Characters

        return Characters(classes), None
    if cls.classes_from == "speaker":
        return None, {name: index for index, name in enumerate(classes)}
    return None, None


def make_backbone(config: Config) -> Backbone:
    """The backbone of a configuration, with the weights of `init.from` where it is given."""
    backbone = build_backbone(config.backbone)
    if config.init.from_:
        from speechssl.models.bundle import load_bundle

        backbone.load_state_dict(load_bundle(config.init.from_).backbone.state_dict())
    return backbone


def make_objective(config: Config, classes: Sequence[str]) -> Objective:
    """Backbone and head, the same on every rank: weights are drawn from data.seed."""
    import torch

    torch.manual_seed(config.data.seed)
    return objective_class(config)(make_backbone(config), config.objective.cfg, classes)
