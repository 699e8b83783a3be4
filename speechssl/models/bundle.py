"""Models on disk: our portable folder, written and read, and whatever else can be read.

Our folder is a Hugging Face layout that never needs pickle:

`config.json` (their keys, and everything of ours under "speechssl"), `model.safetensors` (fp32,
their names), `preprocessor_config.json`, the vocabulary of a CTC model, and a `README.md` card.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speechssl import __version__, lookup
from speechssl.errors import CheckpointError, ConfigError
from speechssl.models.backbone import Backbone, build_backbone
from speechssl.models.card import model_card
from speechssl.models.folder import OLD_WEIGHTS, WEIGHTS, read_json, read_weights, write_folder
from speechssl.models.formats import hf_config
from speechssl.models.formats.foreign import read_bundle, read_foreign
from speechssl.models.formats.hf_folder import hf_backbone, read_hf_folder
from speechssl.models.formats.hf_names import from_file, to_file
from speechssl.models.formats.stored import Stored, as_model, objective_class
from speechssl.models.presets import BackboneConfig
from speechssl.models.stored_config import from_json, to_json
from speechssl.models.weights import check_weights, load_weights

if TYPE_CHECKING:
    from speechssl.objectives.base import Objective

log = logging.getLogger(__name__)
FORMAT = 1
_BACKBONE = "backbone."  # of our module tree; in the file it is that of a family
#: How files of other toolkits are called.
FILES = (".pt", ".pth", ".bin", ".ckpt")
BUNDLES = "torchaudio:"  # before a name in torchaudio.pipelines


@dataclass(frozen=True)
class Bundle:
    """A loaded model, in eval mode. `objective` is None for a bare backbone."""

    backbone: Backbone
    objective: Objective | None
    config: dict[str, Any]  # the whole config.json
    classes: tuple[str, ...]  # characters or speakers by output index; () without a classifier
    folder: Path  # or the file it came from
    kind: str = "speechssl"  # the family or toolkit whose file it was
    told: tuple[str, ...] = ()  # what was assumed or left out of another toolkit's file


def save_bundle(
    folder: str | Path,
    objective: Objective | Backbone,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    card: Mapping[str, Any],
    family: str | None = None,
    plain: bool = False,
) -> None:
    """Write a model folder in one step: a reader sees the old folder or the new one.

    `state_dict` replaces `objective.state_dict()` where an engine holds the weights elsewhere;
    same names. `card` says how the model was made (see `model_card`). `family` is the model type
    to write it as, where more than one computes the same; `plain` leaves out everything of ours,
    so that it is a folder as `transformers` writes it.
    Raises CheckpointError when names or shapes are not the model's, a weight is not finite, or the
    family has no such network.
    """
    head = None if isinstance(objective, Backbone) else objective
    backbone = objective if head is None else head.backbone
    weights = objective.state_dict() if state_dict is None else state_dict
    check_weights(objective, weights, f"model for {folder}")
    cfg: BackboneConfig = backbone.cfg
    name = None if head is None else name_of(head)
    settings = {} if head is None else to_json(head.cfg)
    classes = () if head is None else head.classes
    family = _family(cfg, family, plain)
    config = hf_config.to_hf(cfg, name, settings, classes, family)
    if not plain:
        config["speechssl"] = {
            "format": FORMAT,
            "version": __version__,
            "backbone": to_json(cfg),
            "objective": None if name is None else {"name": name, "config": settings},
            "classes": list(classes),
        }
    elif not config["architectures"][0].endswith(("CTC", "PreTraining", "Classification")):
        weights = {k: v for k, v in weights.items() if k.startswith(_BACKBONE) or head is None}
    files: dict[str, Any] = {
        "config.json": config,
        "preprocessor_config.json": hf_config.preprocessor_config(cfg),
        "README.md": model_card(_facts(objective, config), card, _tags(cfg, name)),
    }
    if name == "ctc":
        files |= hf_config.tokenizer_files(classes)
    write_folder(Path(folder), files, to_file(weights, cfg, family or "wav2vec2"))


def _family(cfg: BackboneConfig, asked: str | None, plain: bool) -> str | None:
    """The family to write a network as; None where there is none and none is needed."""
    own = hf_config.family(cfg)
    if asked is not None and not hf_config.computes(cfg, asked):
        raise CheckpointError(
            f"a network of {own or 'no'} family of Hugging Face cannot be written as '{asked}'"
        )
    if own is None and plain:
        raise CheckpointError(
            f"a backbone with context '{cfg.context}', conv_norm '{cfg.conv_norm}', conv_first "
            f"'{cfg.conv_first}' and causal {cfg.causal} has no class in transformers; the presets "
            "tiny, small, base and large have one"
        )
    return asked or own


def load_bundle(
    path: str | Path, device: str | torch.device = "cpu", *, plugins: bool = False
) -> Bundle:
    """Read a model folder of ours, one of Hugging Face, or a fairseq or torchaudio file.

    Of those of others the backbone is read, and the head where it is one of ours; `Bundle.told`
    says what was not.

    `plugins` allows an objective of another package (`package.module:Class`), which is imported.
    Raises CheckpointError when a file is missing or damaged, when names or shapes are not exactly
    the model's, when a weight is not finite, or when a newer version wrote the folder.
    """
    path = Path(path)
    stored = read_other(path)
    if stored is not None:
        model = as_model(stored, str(path))
        inside = path / "config.json"
        config = read_json(path, inside.name) if inside.is_file() else hf_config.to_hf(stored.cfg)
        classes, kind, told = stored.classes, stored.kind, stored.told
    else:
        config = read_json(path, "config.json")
        model, classes = _ours(config["speechssl"], str(path / "config.json"), plugins)
        load_weights(model, _own_tensors(path, config), str(path / WEIGHTS))
        kind, told = "speechssl", ()
    for line in told:
        log.info("%s: %s", path, line)
    model = model.to(device).eval()
    if isinstance(model, Backbone):
        return Bundle(model, None, config, classes, path, kind, told)
    return Bundle(model.exported(), model, config, classes, path, kind, told)


def read_other(path: Path) -> Stored | None:
    """What another toolkit's model holds; None where `path` is a folder of ours."""
    if str(path).startswith(BUNDLES):
        return read_bundle(str(path)[len(BUNDLES) :])
    if path.is_file():
        return read_foreign(path)
    config = read_json(path, "config.json")
    return read_hf_folder(path, config) if config.get("speechssl") is None else None


def load(
    path_or_id: str | Path,
    device: str | torch.device = "cpu",
    *,
    revision: str | None = None,
    plugins: bool = False,
    offline: bool = False,
) -> Bundle:
    """A model from a folder or a fairseq or torchaudio file, or the hub's `organisation/name`.

    `torchaudio:NAME` is a bundle of torchaudio.pipelines. `revision` is a branch, tag or commit on
    the hub; `offline` (or HF_HUB_OFFLINE=1) takes what is in the local cache and asks nobody.
    `plugins` as in `load_bundle`.
    Raises CheckpointError when there is neither, or when the folder is not one we can read.
    """
    return load_bundle(locate(path_or_id, revision, offline), device, plugins=plugins)


def locate(path_or_id: str | Path, revision: str | None = None, offline: bool = False) -> Path:
    """The folder or file of a model, fetched from the hub where `path_or_id` is not local.

    The name of a torchaudio bundle stays what it is.

    Raises CheckpointError when there is neither.
    """
    path = Path(path_or_id)
    if str(path).startswith(BUNDLES):
        return path
    if path.is_dir() or (path.is_file() and path.suffix in FILES):
        return path
    text = str(path_or_id)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or text.startswith("."):
        kind = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(
            f"model '{text}' {kind}; expected a model folder (training writes model/), a fairseq "
            f"or torchaudio checkpoint ({', '.join(FILES)}) or a hub id 'organisation/name'"
        )
    return _download(text, revision, offline)


def backbone_config(path: Path) -> BackboneConfig:
    """The network that a model folder or file describes, whoever wrote it.

    Raises CheckpointError when it cannot be read.
    """
    if path.is_file() or str(path).startswith(BUNDLES):
        stored = read_other(path)
        assert stored is not None
        return stored.cfg
    config = read_json(path, "config.json")
    where = str(path / "config.json")
    stored = config.get("speechssl")
    if stored is None:
        return hf_backbone(path, config)
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{where}: 'speechssl' is not a table; the file is damaged")
    return from_json(BackboneConfig, stored.get("backbone"), "speechssl.backbone", where)


def name_of(objective: nn.Module) -> str:
    """The config name `lookup.find` resolves to the class of `objective`."""
    cls = type(objective)
    package, _, stem = cls.__module__.rpartition(".")
    return stem if package in lookup.OBJECTIVE_PACKAGES else f"{cls.__module__}:{cls.__qualname__}"


def own_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder of ours under the names of an Objective."""
    weights = _own_tensors(folder, read_json(folder, "config.json"))
    if not any(key.startswith(_BACKBONE) for key in weights):
        weights = {_BACKBONE + key: value for key, value in weights.items()}
    return weights


def _ours(stored: Any, where: str, plugins: bool) -> tuple[Objective | Backbone, tuple[str, ...]]:
    """The model, its weights still random, that the "speechssl" table describes."""
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{where}: 'speechssl' is not a table; the file is damaged")
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


def _own_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a folder of ours as its model names them."""
    kind = str(config.get("model_type"))
    return from_file(read_weights(folder), kind if kind in hf_config.FAMILIES else "wav2vec2")


def _download(model_id: str, revision: str | None, offline: bool) -> Path:
    """The folder of a hub model, from the local cache where it is up to date."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "model*.safetensors", "README.md"]
    asked: dict[str, Any] = {"revision": revision, "local_files_only": offline}
    try:
        folder = Path(snapshot_download(model_id, **asked, allow_patterns=wanted))
        if not any(folder.glob("model*.safetensors")):
            wanted.append(OLD_WEIGHTS)
            folder = Path(snapshot_download(model_id, **asked, allow_patterns=wanted))
        return folder
    except Exception as error:  # http clients have many error types and no common base
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"cannot fetch model '{model_id}' from the Hugging Face hub: "
            f"{reason[0] if reason else type(error).__name__}; "
            "check id, revision and network, or give a local folder (offline, only what was "
            "fetched before is there)"
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
    elif name is not None and classes[0].endswith("Model"):
        facts["loads in transformers"] = "the backbone only; the head is ours"
    else:
        facts["loads in transformers"] = f"yes: {classes[0]}"
    return facts


def _tags(cfg: BackboneConfig, name: str | None) -> list[str]:
    tags = ["speechssl", "speech", "audio"]
    if family := hf_config.family(cfg):
        tags.append(family)
    task = {"ctc": "automatic-speech-recognition", "speaker": "speaker-identification"}
    return [*tags, task.get(name or "", "feature-extraction")]
