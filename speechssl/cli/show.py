"""`speechssl show`: a configuration, model, run, checkpoint, manifest or recording in words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.errors import ConfigError, SpeechSSLError

if TYPE_CHECKING:
    from speechssl.config import Config
    from speechssl.models.presets import BackboneConfig


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl show",
        description="A configuration (.yaml) with the origin of every value, a model folder, a run "
        "folder, a checkpoint folder, a manifest (.jsonl), or a sound file. Further --config FILE "
        "and --section.key VALUE are put on top of a configuration.",
    )
    p.add_argument("what", help="file or folder")
    p.add_argument("--plot", metavar="PNG", help="of a sound file: waveform and spectrogram")
    p.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    args, overrides = parser().parse_known_args(argv)
    what = Path(args.what)
    if what.suffix in (".yaml", ".yml"):
        from speechssl.config import resolve

        config = resolve(["--config", str(what), *overrides])
        facts = {"config": str(what)} | config_facts(config)
        settings: Config | None = config
    elif args.plot:
        from speechssl.report.audio import plot_audio

        plot_audio(what, args.plot)
        facts, settings = audio_facts(what) | {"picture": args.plot}, None
    else:
        if overrides:
            raise ConfigError(f"'{overrides[0]}': settings go with a .yaml configuration only")
        facts, settings = folder_facts(what)
    if args.json:
        if settings is not None:
            facts["settings"] = settings.to_dict()
        print(json.dumps(facts, ensure_ascii=False, default=str))
        return 0
    print_facts(facts)
    if settings is not None:
        print_settings(settings)
    return 0


def folder_facts(what: Path) -> tuple[dict[str, Any], Config | None]:
    """What a manifest or a folder is, found by the files in it, and its settings if it has any."""
    from speechssl.config import from_file

    if what.suffix == ".jsonl":
        from speechssl.data.manifest import describe, read_manifest

        return {"manifest": str(what)} | describe(read_manifest(what)), None
    if is_audio(what):
        return audio_facts(what), None
    if not what.exists():
        raise ConfigError(
            f"'{what}' does not exist; expected a configuration, model, run, checkpoint, manifest "
            "or sound file"
        )
    from speechssl.models.bundle import FILES

    if what.suffix in FILES and what.is_file():
        return {"model": str(what)} | foreign_facts(what), None
    if (what / "config.json").is_file():
        return {"model": str(what)} | model_facts(what), None
    if (what / "config.yaml").is_file():
        config = from_file(what / "config.yaml")
        return {"run": str(what)} | run_facts(what) | config_facts(config), config
    if (what / "MANIFEST.json").is_file():
        return {"checkpoint": str(what)} | checkpoint_facts(what), None
    raise ConfigError(
        f"'{what}' is nothing that show knows: expected a .yaml, .jsonl, sound or checkpoint "
        f"file ({', '.join(FILES)}), or a folder with config.json (model), config.yaml (run) or "
        "MANIFEST.json (checkpoint) in it"
    )


def is_audio(what: Path) -> bool:
    """Whether the suffix is one of sound files."""
    from speechssl.audio.io import SUFFIXES

    return what.suffix.lower() in SUFFIXES


def audio_facts(path: Path) -> dict[str, Any]:
    """What the header of a sound file says, and how loud it is."""
    from speechssl.audio.io import measure, probe

    info, level = probe(path), measure(path)
    return {
        "audio": str(path),
        "format": info.format,
        "rate": f"{info.rate_hz} Hz",
        "channels": info.channels,
        "seconds": info.num_samples / info.rate_hz,
        "level": f"{level.rms_dbfs:.1f} dBFS",
        "peak": level.peak,
        "clipped": f"{level.clipped:.2%}",
    }


def config_facts(config: Config) -> dict[str, Any]:
    """Objective, sizes, frame clock, and how much audio an update takes."""
    facts: dict[str, Any] = {"objective": config.objective.name}
    facts |= backbone_facts(config.backbone)
    try:
        facts["parameters_with_head"] = f"{objective_size(config):,}"
    except SpeechSSLError as error:
        facts["parameters_with_head"] = f"not known: {error}"
    facts["seconds_per_update"] = config.data.update_sec
    facts["hours_in_all"] = config.data.update_sec * config.optim.steps / 3600
    facts["engine"] = config.engine.kind
    facts["precision"] = config.engine.precision
    return facts


def backbone_facts(cfg: BackboneConfig) -> dict[str, Any]:
    """Parameter count and frame geometry, on the meta device: no memory is taken."""
    import torch

    from speechssl.models.backbone import build_backbone

    with torch.device("meta"):
        backbone = build_backbone(cfg)
    geometry = backbone.geometry
    return {
        "backbone": f"{cfg.preset}, {cfg.context}, {cfg.layers} layers of {cfg.dim}",
        "parameters": f"{sum(p.numel() for p in backbone.parameters()):,}",
        "hop": f"{geometry.hop} samples, {1000 * geometry.hop / geometry.rate_hz:g} ms",
        "receptive_field": (
            f"{geometry.receptive} samples, {1000 * geometry.receptive / geometry.rate_hz:g} ms"
        ),
        "frame_rate": f"{geometry.rate_hz / geometry.hop:g} Hz",
        "causal": backbone.causal,
    }


def objective_size(config: Config) -> int:
    """Parameters of backbone and head; classes are read from the training manifest if needed."""
    import torch

    from speechssl.cli.assembly import class_names, objective_class, read_manifests
    from speechssl.models.backbone import build_backbone

    cls = objective_class(config)
    classes = class_names(cls, read_manifests(config.data.train)) if cls.classes_from else ()
    with torch.device("meta"):
        objective = cls(build_backbone(config.backbone), config.objective.cfg, classes)
    return sum(p.numel() for p in objective.parameters())


def foreign_facts(file: Path) -> dict[str, Any]:
    """What a checkpoint file of fairseq or torchaudio holds."""
    from speechssl.models.formats.foreign import read_foreign

    stored = read_foreign(file)
    facts = backbone_facts(stored.cfg)
    facts["objective"] = stored.objective or "none"
    facts["written_by"] = stored.kind
    if stored.dropped:
        facts["left_out"] = ", ".join(stored.dropped)
    for line in stored.told:
        facts.setdefault("told", []).append(line)
    return facts


def model_facts(folder: Path) -> dict[str, Any]:
    """What a model folder's config.json says."""
    from speechssl.config import stored_backbone

    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = backbone_facts(stored_backbone(folder))
    ours = stored.get("speechssl") or {}
    objective = ours.get("objective") or {}
    facts["objective"] = objective.get("name", "none")
    facts["written_by"] = f"speechssl {ours.get('version')}" if ours else "transformers"
    weights = folder / "model.safetensors"
    facts["weights"] = f"{weights.stat().st_size / 2**20:.1f} MiB" if weights.exists() else "absent"
    return facts


def run_facts(folder: Path) -> dict[str, Any]:
    """How far a run has come, and what it holds."""
    from speechssl.report.curves import read_curves

    facts: dict[str, Any] = {}
    if (folder / "metrics.jsonl").is_file():
        curves = read_curves(folder).curves
        facts["updates"] = max(steps[-1] for steps, _ in curves.values())
        facts |= {
            f"valid_{name}": y[-1] for (split, name), (_, y) in curves.items() if split == "valid"
        }
    facts["checkpoints"] = len(list(folder.glob("ckpt/step_*/MANIFEST.json")))
    facts["models"] = ", ".join(str(p.parent) for p in sorted(folder.glob("*/config.json")))
    return facts


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint's own list of files says."""
    stored = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
    facts = {k: v for k, v in stored.items() if not isinstance(v, dict | list)}
    files = [p for p in folder.rglob("*") if p.is_file()]
    facts["files"] = len(files)
    facts["size"] = f"{sum(p.stat().st_size for p in files) / 2**20:.1f} MiB"
    return facts


def print_facts(facts: dict[str, Any]) -> None:
    """One aligned line a fact."""
    width = max(map(len, facts))
    for key, value in facts.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{key.replace('_', ' '):<{width}}  {shown}")


def print_settings(config: Config) -> None:
    """Every setting with the place it comes from."""
    print()
    for section, settings in config.to_dict().items():
        print(f"{section}:")
        for key, value in _flat(settings):
            source = config.sources.get(f"{section}.{key}", "default")
            print(f"  {key + ': ' + json.dumps(value):<52}  # {source}")


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found
