"""The portable model folder: a Hugging Face layout that never needs pickle.

`config.json` (their keys, and everything of ours under "speechssl"), `model.safetensors` (fp32,
their names), `preprocessor_config.json`, the vocabulary of a CTC model, and a `README.md` card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speechssl import __version__, lookup
from speechssl.errors import CheckpointError, ConfigError
from speechssl.models import hf_config
from speechssl.models.backbone import Backbone, build_backbone
from speechssl.models.card import model_card
from speechssl.models.folder import OLD_WEIGHTS, WEIGHTS, read_json, read_weights, write_folder
from speechssl.models.presets import BackboneConfig
from speechssl.models.stored_config import from_json, to_json

if TYPE_CHECKING:
    from speechssl.objectives.base import Objective

FORMAT = 1
_BACKBONE = "backbone."  # of our module tree; in the file it is that of a family


@dataclass(frozen=True)
class Bundle:
    """A loaded model folder, in eval mode. `objective` is None for a bare backbone."""

    backbone: Backbone
    objective: Objective | None
    config: dict[str, Any]  # the whole config.json
    classes: tuple[str, ...]  # characters or speakers by output index; () without a classifier
    folder: Path


def save_bundle(
    folder: str | Path,
    objective: Objective | Backbone,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    card: Mapping[str, Any],
) -> None:
    """Write a model folder in one step: a reader sees the old folder or the new one.

    `state_dict` replaces `objective.state_dict()` where an engine holds the weights elsewhere;
    same names. `card` says how the model was made (see `model_card`).
    Raises CheckpointError when names or shapes are not the model's, or a weight is not finite.
    """
    head = None if isinstance(objective, Backbone) else objective
    backbone = objective if head is None else head.backbone
    weights = objective.state_dict() if state_dict is None else state_dict
    _check_weights(objective, weights, f"model for {folder}")
    cfg: BackboneConfig = backbone.cfg
    name = None if head is None else name_of(head)
    settings = {} if head is None else to_json(head.cfg)
    classes = () if head is None else head.classes
    config = hf_config.to_hf(cfg, name, settings, classes)
    config["speechssl"] = {
        "format": FORMAT,
        "version": __version__,
        "backbone": to_json(cfg),
        "objective": None if name is None else {"name": name, "config": settings},
        "classes": list(classes),
    }
    files: dict[str, Any] = {
        "config.json": config,
        "preprocessor_config.json": hf_config.preprocessor_config(cfg),
        "README.md": model_card(_facts(objective, config), card, _tags(cfg, name)),
    }
    if name == "ctc":
        files |= hf_config.tokenizer_files(classes)
    write_folder(Path(folder), files, {_file_key(k): v for k, v in weights.items()})


def load_bundle(
    folder: str | Path, device: str | torch.device = "cpu", *, plugins: bool = False
) -> Bundle:
    """Read a model folder of ours, or a plain Hugging Face one of Wav2Vec2 or Hubert.

    Of those the backbone is read, and the head where it is one of ours: CTC (with its vocab.json)
    or that of wav2vec 2.0 pre-training.

    `plugins` allows an objective of another package (`package.module:Class`), which is imported.
    Raises CheckpointError when a file is missing or damaged, when names or shapes are not exactly
    the model's, when a weight is not finite, or when a newer version wrote the folder.
    """
    folder = Path(folder)
    config = read_json(folder, "config.json")
    stored = config.get("speechssl")
    where = str(folder / "config.json")
    if stored is None:
        model, classes = _plain_huggingface(folder, config)
    else:
        if not isinstance(stored, Mapping):
            raise CheckpointError(f"{where}: 'speechssl' is not a table; the file is damaged")
        model, classes = _ours(stored, where, plugins)
        weights = {_our_key(k): v for k, v in read_weights(folder).items()}
        load_weights(model, weights, str(folder / WEIGHTS))
    model = model.to(device).eval()
    if isinstance(model, Backbone):
        return Bundle(model, None, config, classes, folder)
    return Bundle(model.exported(), model, config, classes, folder)


def load(
    path_or_id: str | Path,
    device: str | torch.device = "cpu",
    *,
    revision: str | None = None,
    plugins: bool = False,
) -> Bundle:
    """A model from a local folder, or from the Hugging Face hub by its `organisation/name`.

    `revision` is a branch, tag or commit on the hub. `plugins` as in `load_bundle`.
    Raises CheckpointError when there is neither, or when the folder is not one we can read.
    """
    return load_bundle(locate(path_or_id, revision), device, plugins=plugins)


def locate(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a model, fetched from the hub where `path_or_id` is no local folder.

    Raises CheckpointError when there is neither.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    text = str(path_or_id)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or text.startswith("."):
        kind = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"model '{text}' {kind}; expected a model folder (training writes model/) "
            "or a hub id 'organisation/name'"
        )
    return _download(text, revision)


def backbone_config(folder: Path) -> BackboneConfig:
    """The network that a model folder describes, ours or a plain Hugging Face one.

    Raises CheckpointError when it cannot be read.
    """
    config = read_json(folder, "config.json")
    where = str(folder / "config.json")
    stored = config.get("speechssl")
    if stored is None:
        optional = (folder / "preprocessor_config.json").exists()
        preprocessor = read_json(folder, "preprocessor_config.json") if optional else {}
        return hf_config.from_hf(config, preprocessor, where)
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{where}: 'speechssl' is not a table; the file is damaged")
    return from_json(BackboneConfig, stored.get("backbone"), "speechssl.backbone", where)


def named_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a folder under the names of an Objective, whoever wrote it."""
    weights = {_our_key(key): value for key, value in read_weights(folder).items()}
    if not any(key.startswith(_BACKBONE) for key in weights):
        weights = {_BACKBONE + key: value for key, value in weights.items()}
    if config.get("speechssl") is None:
        for name in [key for key in weights if ".conv.weight_" in key]:
            ours = name.replace(".conv.weight_g", ".conv.parametrizations.weight.original0")
            ours = ours.replace(".conv.weight_v", ".conv.parametrizations.weight.original1")
            weights[ours] = weights.pop(name)
        # Their mask vector exists only where their masking options ask for it.
        weights.setdefault("backbone.masked_spec_embed", torch.rand(backbone_config(folder).dim))
    return weights


def vocabulary(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The characters of a plain Hugging Face CTC model by output index; () without them."""
    if not (folder / "vocab.json").exists():
        return ()
    if config.get("pad_token_id", 0) != 0:
        raise CheckpointError(f"{folder}: pad_token_id (the blank) is not 0; not supported")
    index = read_json(folder, "vocab.json")
    return tuple(sorted(index, key=lambda token: index[token]))


def plain_head(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[str | None, tuple[str, ...]]:
    """Which objective of ours the head of a plain Hugging Face model is, and its classes."""
    if "quantizer.codevectors" in weights:
        return "wav2vec2", ()
    if "lm_head.weight" in weights and (characters := vocabulary(folder, config)):
        return "ctc", characters
    return None, ()


def name_of(objective: nn.Module) -> str:
    """The config name `lookup.find` resolves to the class of `objective`."""
    cls = type(objective)
    package, _, stem = cls.__module__.rpartition(".")
    return stem if package in lookup.OBJECTIVE_PACKAGES else f"{cls.__module__}:{cls.__qualname__}"


def _ours(
    stored: Mapping[str, Any], where: str, plugins: bool
) -> tuple[Objective | Backbone, tuple[str, ...]]:
    """The model, its weights still random, that the "speechssl" table describes."""
    written = stored.get("format")
    if not isinstance(written, int):
        raise CheckpointError(f"{where}: speechssl.format is {written!r}, expected a number")
    if written > FORMAT:
        raise CheckpointError(
            f"{where}: written by speechssl {stored.get('version')} (format {written}); this is "
            f"{__version__} and reads up to format {FORMAT}: upgrade speechssl"
        )
    classes, about = stored.get("classes"), stored.get("objective")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise CheckpointError(f"{where}: speechssl.classes is {classes!r}, expected a list of text")
    cfg = from_json(BackboneConfig, stored.get("backbone"), "speechssl.backbone", where)
    cls, settings = None, None
    if about is not None:
        name = about.get("name") if isinstance(about, Mapping) else None
        if not isinstance(name, str):
            raise CheckpointError(f"{where}: speechssl.objective.name is {name!r}, expected a name")
        if ":" in name and not plugins:
            raise CheckpointError(
                f"{where}: its objective '{name}' is code of another package, which loading would "
                "run; if you trust it: speechssl.load(..., plugins=True), or --plugins on the "
                "command line"
            )
        cls = objective_class(name)
        settings = from_json(cls.Config, about.get("config"), "speechssl.objective.config", where)
    try:
        backbone = build_backbone(cfg)
        return (cls(backbone, settings, classes) if cls else backbone), tuple(classes)
    except (ConfigError, ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{where}: describes a network that cannot be built: {error}; "
            "the file was edited or written by other code"
        ) from error


def _plain_huggingface(
    folder: Path, config: Mapping[str, Any]
) -> tuple[Objective | Backbone, tuple[str, ...]]:
    """A folder written by `transformers`: the backbone, below its head if that is one of ours."""
    backbone = build_backbone(backbone_config(folder))
    weights = named_weights(folder, config)
    name, classes = plain_head(folder, config, weights)
    if name is not None:
        cls = objective_class(name)
        settings = hf_config.pretraining_settings(config) if name == "wav2vec2" else {}
        objective = cls(backbone, cls.Config(**settings), classes)
        load_weights(objective, weights, str(folder / WEIGHTS))
        return objective, classes
    own = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    load_weights(backbone, own, str(folder / WEIGHTS))
    return backbone, ()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load exactly the model's tensors. Raises CheckpointError for anything else, or for NaN."""
    _check_weights(model, weights, where)
    model.load_state_dict(weights)


def _check_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError unless `weights` are exactly the model's, by name, shape and value."""
    expected = model.state_dict()
    missing, extra = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors missing: {_some(missing)}")
    if extra:
        problems.append(f"{len(extra)} tensors unexpected: {_some(extra)}")
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ][:5]
    if not problems:
        bad = [k for k, v in weights.items() if not bool(torch.isfinite(v).all())]
        if bad:
            problems.append(f"NaN or Inf in {_some(bad)}")
    if problems:
        raise CheckpointError(f"{where}: {'; '.join(problems)}")


def _some(names: Any) -> str:
    """Up to five names, enough to see the pattern."""
    shown = sorted(names)
    return ", ".join(shown[:5]) + (" ..." if len(shown) > 5 else "")


def objective_class(name: str) -> type[Objective]:
    """The class of the objective called `name`."""
    # Found by name, as every plugin is: models stand below the objectives and never import them.
    base = import_module("speechssl.objectives.base").Objective
    return lookup.find(name, base)


def _file_key(key: str) -> str:
    theirs = hf_config.FAMILIES["wav2vec2"]
    return theirs + key.removeprefix(_BACKBONE) if key.startswith(_BACKBONE) else key


def _our_key(key: str) -> str:
    for theirs in hf_config.FAMILIES.values():
        if key.startswith(theirs):
            return _BACKBONE + key.removeprefix(theirs)
    return key


def _download(model_id: str, revision: str | None) -> Path:
    """The folder of a hub model, from the local cache where it is up to date."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "model*.safetensors", "README.md"]
    try:
        folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=wanted))
        if not any(folder.glob("model*.safetensors")):
            wanted.append(OLD_WEIGHTS)
            folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=wanted))
        return folder
    except Exception as error:  # http clients have many error types and no common base
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"cannot fetch model '{model_id}' from the Hugging Face hub: "
            f"{reason[0] if reason else type(error).__name__}; "
            "check id, revision and network, or give a local folder"
        ) from error


def _facts(model: Objective | Backbone, config: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the card that follow from the model itself."""
    backbone = model if isinstance(model, Backbone) else model.backbone
    cfg, geometry = backbone.cfg, backbone.geometry
    name = None if model is backbone else name_of(model)
    facts = {
        "objective": name or "none (backbone only)",
        "backbone": f"{cfg.preset}: {cfg.layers} layers, dimension {cfg.dim}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "input": f"mono, {cfg.rate_hz} Hz" + (", normalised" if cfg.normalize else ""),
        "frames": f"{geometry.hop * 1000 / cfg.rate_hz:g} ms apart, "
        f"{geometry.receptive * 1000 / cfg.rate_hz:g} ms wide",
        "written by": f"speechssl {__version__}",
    }
    classes = config["architectures"]
    if not classes:
        facts["loads in transformers"] = "no: there is no class for this network"
    elif name is not None and classes == ["Wav2Vec2Model"]:
        facts["loads in transformers"] = "the backbone only; the head is ours"
    else:
        facts["loads in transformers"] = f"yes: {classes[0]}"
    return facts


def _tags(cfg: BackboneConfig, name: str | None) -> list[str]:
    tags = ["speechssl", "speech", "audio"]
    if hf_config.has_hf_class(cfg):
        tags.append("wav2vec2")
    task = {"ctc": "automatic-speech-recognition", "speaker": "speaker-identification"}
    return [*tags, task.get(name or "", "feature-extraction")]
