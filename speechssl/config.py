"""The whole configuration: one frozen dataclass per section, each defined where it is used.

`--config a.yaml --config b.yaml --optim.lr 2e-4`: later wins, every value remembers its source,
and an unknown key, a wrong type or options that contradict each other are errors.
Nothing here imports torch unless an objective is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl import lookup
from speechssl.atomic import write_text
from speechssl.data.config import DataConfig
from speechssl.engine.config import EngineConfig, OptimConfig, RunConfig
from speechssl.errors import ConfigError
from speechssl.models.presets import PRESETS, BackboneConfig, preset
from speechssl.settings import (
    Setting,
    build,
    key_of,
    leaves,
    read_arguments,
    read_yaml,
    reject_unknown,
    typed,
)

if TYPE_CHECKING:
    from speechssl.objectives.base import Objective

#: Backbone settings that change no weight's shape or meaning: free when starting from a model.
FREE_BACKBONE_KEYS = frozenset(
    {
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "layerdrop",
        "input_dropout",
        "feature_dropout",
        "feature_grad_mult",
    }
)


@dataclass(frozen=True)
class InitConfig:
    """Where the weights start."""

    from_: str = ""  # model folder or hub id to start from, ours or a plain Wav2Vec2; empty: none


@dataclass(frozen=True)
class ObjectiveChoice:
    """An objective's name and its own settings."""

    name: str
    cfg: Any


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "backbone": BackboneConfig,
    "optim": OptimConfig,
    "engine": EngineConfig,
    "run": RunConfig,
    "init": InitConfig,
}


@dataclass(frozen=True)
class Config:
    """A resolved configuration; `sources` maps each key that is not a default to its origin."""

    data: DataConfig
    backbone: BackboneConfig
    objective: ObjectiveChoice
    optim: OptimConfig
    engine: EngineConfig
    run: RunConfig
    init: InitConfig
    sources: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of every setting, as `--config` would read it back."""
        plain = {name: _plain(getattr(self, name)) for name in SECTIONS}
        plain["objective"] = {"name": self.objective.name, **_plain(self.objective.cfg)}
        return {name: plain[name] for name in _ORDER}

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=100)

    def save(self, path: str | Path) -> None:
        """Write the resolved YAML at once or not at all."""
        write_text(path, self.to_yaml())


_ORDER = ("data", "backbone", "objective", "optim", "engine", "run", "init")


def resolve(argv: Sequence[str]) -> Config:
    """The configuration that the words after `speechssl train` describe.

    Raises ConfigError, naming key, file and line, for anything that does not fit.
    """
    files, typed_in = read_arguments(argv)
    settings: dict[str, Setting] = {}
    for file in files:
        settings |= read_yaml(file)
    return from_settings(settings | typed_in)


def from_settings(settings: Mapping[str, Setting], *, saved: bool = False) -> Config:
    """The configuration that dotted settings describe; see `resolve`.

    `saved` ones name every backbone setting, so that the model in init.from may be gone by now.
    """
    known = [key for name, cls in SECTIONS.items() for key in leaves(cls, f"{name}.")]
    given = {k: s for k, s in settings.items() if not k.startswith("objective.")}
    reject_unknown(given, [*known, "objective.name"])
    objective_class, name = _objective_class(settings)
    own = {k: s for k, s in settings.items() if k.startswith("objective.")}
    try:
        reject_unknown(own, ["objective.name", *leaves(objective_class.Config, "objective.")])
    except ConfigError as error:
        raise ConfigError(f"{error} (objective.name is '{name}')") from error

    sources = {key: setting.source for key, setting in settings.items()}
    init = build(InitConfig, "init", settings)
    if saved:
        backbone = build(BackboneConfig, "backbone", settings)
    elif init.from_:
        backbone = _backbone_of_model(init.from_, settings, sources)
    else:
        backbone = _backbone_of_preset(settings, sources)
    return Config(
        data=build(DataConfig, "data", settings),
        backbone=backbone,
        objective=ObjectiveChoice(name, build(objective_class.Config, "objective", settings)),
        optim=build(OptimConfig, "optim", settings),
        engine=build(EngineConfig, "engine", settings),
        run=build(RunConfig, "run", settings),
        init=init,
        sources=sources,
    )


def from_file(path: str | Path) -> Config:
    """The configuration that `Config.save` wrote, such as a run's own `config.yaml`."""
    return from_settings(read_yaml(path), saved=True)


def cross_checks(config: Config, *, device: str = "cpu") -> None:
    """Refuse combinations that no single section can see, before any heavy work.

    `device` is "cpu" or "cuda". Raises ConfigError.
    """
    data, engine = config.data, config.engine
    if not data.train:
        raise ConfigError("data.train is not set; expected the manifest to train on (.jsonl)")
    if data.batch_sec > data.update_sec:
        raise ConfigError(
            f"data.batch_sec is {data.batch_sec:g} and data.update_sec is {data.update_sec:g}: a "
            "micro-batch cannot hold more audio than an update; raise update_sec or lower batch_sec"
        )
    if engine.precision == "fp16" and device == "cpu":
        raise ConfigError(
            "engine.precision is 'fp16', but there is no GPU here; use 'fp32' or 'bf16' on a CPU"
        )
    from speechssl.objectives.base import Objective

    teaches = lookup.find(config.objective.name, Objective).has_teacher
    if teaches and engine.kind == "deepspeed" and engine.zero_stage == 3:
        raise ConfigError(
            f"engine.zero_stage is 3, but the teacher of objective {config.objective.name} follows "
            "whole weights, which no process has there; use stage 1 or 2"
        )
    if data.augment.gain_prob and config.backbone.normalize:
        raise ConfigError(
            f"data.augment.gain_prob is {data.augment.gain_prob:g}, but backbone.normalize brings "
            "every utterance to the same loudness; set gain_prob to 0 (or normalize to false)"
        )
    objective = config.objective.cfg
    if getattr(objective, "freeze_steps", 0) and config.optim.weight_decay:
        raise ConfigError(
            f"objective.freeze_steps is {objective.freeze_steps}, but optim.weight_decay is "
            f"{config.optim.weight_decay:g} and would move the frozen weights towards zero; set it "
            "to 0 (as published) or freeze_steps to 0"
        )
    still = getattr(objective, "frozen", False) or getattr(objective, "freeze_features", False)
    if config.backbone.feature_grad_mult == 0 and config.optim.weight_decay and not still:
        raise ConfigError(
            "backbone.feature_grad_mult is 0, so the convolutional encoder gets no gradient, but "
            f"optim.weight_decay is {config.optim.weight_decay:g} and would shrink it all the "
            "same; set weight_decay to 0 or feature_grad_mult above 0"
        )
    asked_to_learn = getattr(objective, "freeze_features", None) is False and not still
    if config.backbone.feature_grad_mult == 0 and asked_to_learn:
        raise ConfigError(
            "objective.freeze_features is false, but backbone.feature_grad_mult is 0 (a model in "
            "init.from hands it on) and holds the convolutional encoder still; set "
            "backbone.feature_grad_mult to 1, or objective.freeze_features to true"
        )
    learns = not getattr(objective, "frozen", False)
    if getattr(objective, "norm", None) == "time" and learns and config.backbone.dropout:
        raise ConfigError(
            "objective.norm is time, but the backbone learns under backbone.dropout "
            f"{config.backbone.dropout:g}: its noise counts as spread over time, which evaluation "
            "does not see, and all outputs come out too large there; set backbone.dropout to 0, or "
            "objective.norm to layer or none"
        )
    channels = getattr(objective, "channel_mask", None)
    if channels is None or channels.prob == 0 or getattr(objective, "frozen", False):
        return
    if config.backbone.dim < 2 * channels.length:
        raise ConfigError(
            f"objective.channel_mask.length is {channels.length}, but the backbone has "
            f"{config.backbone.dim} channels and would never be masked; set it to "
            f"{config.backbone.dim // 2} or less, or channel_mask.prob to 0"
        )


def _objective_class(settings: Mapping[str, Setting]) -> tuple[type[Objective], str]:
    setting = settings.get("objective.name")
    if setting is None:
        raise ConfigError(f"objective.name is not set; expected one of {', '.join(lookup.names())}")
    name = typed("objective.name", str, setting)
    from speechssl.objectives.base import Objective

    try:
        return lookup.find(name, Objective), name
    except ConfigError as error:
        raise ConfigError(f"{setting.source}: {error}") from error


def _backbone_of_preset(settings: Mapping[str, Setting], sources: dict[str, str]) -> BackboneConfig:
    """The preset's values with the explicit ones on top."""
    hints = leaves(BackboneConfig, "backbone.")
    explicit = {
        key.removeprefix("backbone."): typed(key, hints[key], setting)
        for key, setting in settings.items()
        if key.startswith("backbone.")
    }
    name = explicit.pop("preset", "tiny")
    for key in PRESETS.get(name, {}):
        sources.setdefault(f"backbone.{key}", f"preset {name}")
    return preset(name, **explicit)


def _backbone_of_model(
    folder: str, settings: Mapping[str, Setting], sources: dict[str, str]
) -> BackboneConfig:
    """The backbone of a saved model; explicit settings may change regularisation only."""
    stored = stored_backbone(folder)
    hints = leaves(BackboneConfig, "backbone.")
    asked: dict[str, tuple[Any, str]] = {}
    chosen = settings.get("backbone.preset")
    if chosen is not None:
        name = typed("backbone.preset", str, chosen)
        # A model of elsewhere is of a preset that has a name and no values.
        expected = {} if name == stored.preset not in PRESETS else asdict(preset(name))
        asked = {
            key: (expected[key], f"{chosen.source} (preset {name})")
            for key in expected
            if key not in FREE_BACKBONE_KEYS and key != "preset"
        }
    for key, setting in settings.items():
        if key.startswith("backbone.") and key != "backbone.preset":
            asked[key.removeprefix("backbone.")] = (
                typed(key, hints[key], setting),
                setting.source,
            )
    values = {f.name: getattr(stored, f.name) for f in fields(BackboneConfig)}
    for key, (value, source) in asked.items():
        if key in FREE_BACKBONE_KEYS:
            values[key] = value
        elif values[key] != value:
            raise ConfigError(
                f"{source}: backbone.{key} is {value!r}, but the model in init.from ({folder}) has "
                f"{values[key]!r}; leave it out, or start from scratch without init.from"
            )
    for key in values:
        sources.setdefault(f"backbone.{key}", f"model {folder}")
    return BackboneConfig(**values)


def stored_backbone(path_or_id: str | Path) -> BackboneConfig:
    """The backbone of a model folder, of a fairseq or torchaudio file, or of a hub model.

    Raises ConfigError where there is no such model, CheckpointError where it cannot be read.
    """
    from speechssl.models.bundle import backbone_config, locate

    folder = Path(path_or_id)
    if folder.is_dir() and not (folder / "config.json").is_file():
        found = sorted(str(p.parent) for p in folder.glob("*/config.json"))
        hint = f"; did you mean {found[0]}?" if found else ""
        raise ConfigError(f"init.from: '{folder}' is no model folder (no config.json in it){hint}")
    return backbone_config(locate(path_or_id))


def input_hashes(config: Config) -> dict[str, Any]:
    """SHA-256 of what the settings only point at: the weights of init.from, the manifests."""

    def sha256(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    found: dict[str, Any] = {
        "init.from": "",
        "data.train": [sha256(Path(path)) for path in config.data.train],
    }
    if config.init.from_:
        from speechssl.models.bundle import locate
        from speechssl.models.folder import weight_files

        path = locate(config.init.from_)
        if path.is_dir():
            found["init.from"] = " ".join(sha256(file) for file in weight_files(path))
        else:
            found["init.from"] = sha256(path) if path.is_file() else str(path)
    return found


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as nested dicts and lists under the names that files use."""

    def simple(one: Any) -> Any:
        if isinstance(one, dict):
            return {key_of(k): simple(v) for k, v in one.items()}
        if isinstance(one, tuple | list | frozenset):
            return [simple(v) for v in one]
        return one

    return simple(asdict(value))
