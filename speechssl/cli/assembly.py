"""From a resolved configuration to manifests, classes, backbone and objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from speechssl import lookup
from speechssl.data.labels import label_facts
from speechssl.data.manifest import read_manifest
from speechssl.errors import DataError
from speechssl.models.backbone import build_backbone
from speechssl.objectives.base import Objective

if TYPE_CHECKING:
    from speechssl.config import Config
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
    """What the head of `cls` tells apart: characters, speakers, clusters, or () without a head.

    Raises DataError when the manifest lacks the field they come from.
    """
    if cls.classes_from is None:
        return ()
    if cls.classes_from == "labels":
        return label_facts(utterances).names
    values = [value for u in utterances if (value := getattr(u, cls.classes_from))]
    if not values:
        raise DataError(
            f"objective {cls.__module__.rpartition('.')[2]} needs '{cls.classes_from}', which none "
            f"of the {len(utterances)} utterances has; add it to the manifest"
        )
    if cls.classes_from == "speaker":
        return tuple(sorted(set(values)))
    from speechssl.data.tokens import BAR, Characters

    for u in utterances:
        if BAR in (u.text or ""):
            raise DataError(
                f"utterance '{u.id}': text {u.text!r} holds '{BAR}', which is the word bar; "
                "remove it"
            )
    return Characters.from_texts(values).vocab


def rare_characters(utterances: Sequence[Utterance], fewer_than: int = 3) -> dict[str, int]:
    """Characters that few transcripts hold, with how many: nothing learns those."""
    counts = Counter(c for u in utterances for c in set(u.text or "") if not c.isspace())
    return {c: n for c, n in sorted(counts.items()) if n < fewer_than}


def target_readers(objective: Objective, utterances: Sequence[Utterance]) -> dict[str, Any]:
    """What turns transcripts, speakers or frame labels into targets, as loaders take it.

    Raises DataError where frame labels are missing or of another clustering than the model's.
    """
    if objective.classes_from == "text":
        from speechssl.data.tokens import Characters

        return {"tokenizer": Characters(objective.classes)}
    if objective.classes_from == "speaker":
        return {"speaker_index": {name: i for i, name in enumerate(objective.classes)}}
    if objective.classes_from == "labels":
        from speechssl.data.labels import FrameLabels

        geometry = objective.backbone.geometry
        labels = FrameLabels(utterances, geometry, objective.labels_per_frame)
        if labels.facts.names != objective.classes:
            raise DataError(
                f"the labels are of clustering {labels.facts.clustering}, the model has learnt "
                f"those of {objective.classes[0].rpartition('/')[0]}; label the manifest with that "
                "one: speechssl cluster MANIFEST.jsonl --out DIR --kmeans FOLDER"
            )
        return {"labels": labels}
    return {}


def make_objective(
    config: Config, classes: Sequence[str], utterances: Sequence[Utterance] = ()
) -> tuple[Objective, str]:
    """Backbone and head, the same on every rank, and in words where their weights come from.

    They are drawn from data.seed, or are those of the model in `init.from`; a new head may look at
    the labels of `utterances`, the training data.
    """
    import torch

    from speechssl.models.start import start_from

    torch.manual_seed(config.data.seed)
    backbone = build_backbone(config.backbone)
    objective = objective_class(config)(backbone, config.objective.cfg, classes)
    objective.know_training_data(utterances)
    if not config.init.from_:
        return objective, "from scratch"
    return objective, f"from {config.init.from_} ({start_from(objective, config.init.from_)})"
