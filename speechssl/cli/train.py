"""`speechssl train`: pre-train or fine-tune; the objective decides."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.config import SECTIONS, Config, cross_checks, resolve


if TYPE_CHECKING:
    import torch

    from speechssl.data.loader import EvalData, TrainData
    from speechssl.objectives.base import Objective
    from speechssl.types import Progress, Utterance


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    words = [word for word in argv if word not in ("-h", "--help", "--print_config")]
    if "-h" in argv or "--help" in argv:
        print(help_text(words))
        return 0
    config = resolve(words)
    if "--print_config" in argv:
        print(config.to_yaml(), end="")
        return 0
    return run(config, shlex.join(["speechssl", "train", *words]))


def run(config: Config, command: str) -> int:
    """Train as configured; returns the exit code."""
    from speechssl.engine import dist

    device = dist.setup(group=config.engine.kind == "deepspeed")
    try:
        cross_checks(config, device=device.type)
        progress, objective = fit(config, command)
        if dist.is_main():
            print(closing(config, progress, objective))
    finally:
        dist.shutdown()
    return 0


def fit(config: Config, command: str) -> tuple[Progress, Objective]:
    """Build everything and train."""
    from speechssl.cli.assembly import class_names, make_objective, objective_class, read_manifests
    from speechssl.engine import dist
    from speechssl.engine.loop import train
    from speechssl.models.bundle import save_bundle

    cls = objective_class(config)
    utterances = read_manifests(config.data.train)
    held_out = read_manifests(config.data.valid) if config.data.valid else []
    # A dev transcript may hold a character the training ones lack: it needs an index to be scored.
    named = [*utterances, *held_out] if cls.classes_from == "text" else utterances
    classes = class_names(cls, named)
    objective = make_objective(config, classes)
    train_data, valid_data = make_data(config, objective, utterances, held_out)
    if dist.is_main():
        print(summary(config, objective, train_data, valid_data), flush=True)
        write_run_files(config, command, objective)

    def export(folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        card = {"title": Path(config.run.out).name, "command": command, "data": described(config)}
        save_bundle(folder, objective, state_dict=state_dict, card=card)

    progress = train(
        objective,
        train_data,
        valid_data,
        config.run,
        config.optim,
        config.engine,
        export=export,
        config=config.to_dict(),
    )
    return progress, objective


def make_data(
    config: Config,
    objective: Objective,
    utterances: Sequence[Utterance],
    held_out: Sequence[Utterance],
) -> tuple[TrainData, EvalData | None]:
    """This rank's training batches, and validation batches where there is a manifest for them."""
    from speechssl.cli.assembly import target_readers
    from speechssl.data.loader import EvalData, TrainData, select
    from speechssl.data.skips import Skips
    from speechssl.engine import dist

    tokenizer, speaker_index = target_readers(type(objective), objective.classes)
    place: dict[str, Any] = {
        "rank": dist.rank(),
        "world": dist.world(),
        "tokenizer": tokenizer,
        "speaker_index": speaker_index,
    }
    geometry, plan = objective.backbone.geometry, objective.plan_fn()
    train_data = TrainData(utterances, geometry, config.data, plan, **place)
    if not held_out:
        return train_data, None
    skips = Skips()
    if speaker_index is not None:  # a closed set: nobody else can be right
        held_out = select(
            held_out, geometry, config.data, skips, speaker_index=speaker_index
        )
    return train_data, EvalData(held_out, geometry, config.data, plan, skips=skips, **place)


def summary(
    config: Config, objective: Objective, train_data: TrainData, valid_data: EvalData | None
) -> str:
    """What is about to happen: model, data, what was left out, length of the run."""
    from speechssl.engine import dist

    count = sum(p.numel() for p in objective.parameters())
    learning = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    origin = f"from {config.init.from_}" if config.init.from_ else "from scratch"
    epochs = config.optim.steps / train_data.updates_per_epoch
    lines = [
        f"model      {config.objective.name} on {config.backbone.preset} {origin}, "
        f"{count / 1e6:.2f} M parameters, {learning / 1e6:.2f} M of them learn",
    ]
    if objective.classes:
        shown = " ".join(objective.classes[:40]) + (" ..." if len(objective.classes) > 40 else "")
        lines.append(f"classes    {len(objective.classes)}: {shown}")
    lines.append(f"train      {audio_of(train_data.utterances)}")
    lines += [f"  left out {line}" for line in train_data.skips.lines()]
    if valid_data is not None:
        lines.append(f"valid      {audio_of(valid_data.utterances)}")
        lines += [f"  left out {line}" for line in valid_data.skips.lines()]
    lines.append(
        f"updates    {config.optim.steps} of {config.data.update_sec:g} s, "
        f"{train_data.updates_per_epoch} an epoch, {epochs:.1f} epochs, "
        f"{train_data.planner.padding_share():.1%} padding"
    )
    lines.append(
        f"engine     {config.engine.kind}"
        + (f" ZeRO {config.engine.zero_stage}" if config.engine.kind == "deepspeed" else "")
        + f", {config.engine.precision}, {dist.world()} process{'es' * (dist.world() > 1)}"
    )
    if levels := objective.chance():
        shown = ", ".join(f"{name} {value:.4g}" for name, value in levels.items())
        lines.append(f"chance     {shown}")
    return "\n".join(lines)


def audio_of(utterances: Sequence[Utterance]) -> str:
    """Number, hours and speakers of some utterances."""
    hours = sum(u.seconds for u in utterances) / 3600
    speakers = len({u.speaker for u in utterances if u.speaker is not None})
    said = f", {speakers} speakers" if speakers else ""
    return f"{len(utterances)} utterances, {hours:.2f} h{said}"


def described(config: Config) -> str:
    """The training manifests, for the model card."""
    return ", ".join(config.data.train)


def write_run_files(config: Config, command: str, objective: Objective) -> None:
    """`config.yaml` and `run.json` in the run's folder: what made it, and its chance levels."""
    import hashlib
    import platform

    import torch

    from speechssl import __version__
    from speechssl.atomic import write_text

    out = Path(config.run.out)
    out.mkdir(parents=True, exist_ok=True)
    config.save(out / "config.yaml")
    facts = {
        "command": command,
        "chance": objective.chance(),
        "speechssl": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "manifests": {
            path: hashlib.sha256(Path(path).read_bytes()).hexdigest()
            for path in (*config.data.train, *config.data.valid)
        },
    }
    write_text(out / "run.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def closing(config: Config, progress: Progress, objective: Objective) -> str:
    """Where everything lies and what to type next."""
    out = Path(config.run.out)
    models = sorted(str(p.parent) for p in out.glob("*/config.json"))
    model = shlex.quote(str(out / "model"))
    lines = [f"\nfinished {progress.step} updates; everything lies in {out}"]
    if progress.best is not None:
        metric = type(objective).best_metric[0]
        lines.append(f"  best       {metric} {progress.best:.4g} at update {progress.best_step}")
    lines += [f"  model      {folder}" for folder in models]
    lines.append(f"  curves     {out / 'metrics.jsonl'}")
    lines.append("next:")
    held_out = shlex.quote(config.data.valid[0]) if config.data.valid else "MANIFEST.jsonl"
    if objective.classes:
        lines.append(f"  speechssl evaluate {model} {held_out}")
        lines.append(f"  speechssl predict {model} AUDIO...")
    else:
        lines.append(f"  speechssl extract {model} {held_out} {shlex.quote(str(out / 'features'))}")
        lines.append(
            f"  speechssl train --init.from {model} --objective.name ctc --data.train "
            "TRANSCRIBED.jsonl --run.out exp/asr"
        )
    lines.append(f"  speechssl report {shlex.quote(str(out))} --out {shlex.quote(str(out / 'curves.png'))}")
    return "\n".join(lines)


def help_text(words: Sequence[str]) -> str:
    """Every setting with type, default and meaning; those of the objective once it is named."""
    from speechssl.cli.options import docstring_line, section_help
    from speechssl.lookup import names
    from speechssl.settings import read_arguments, read_yaml, typed

    files, typed_in = read_arguments(words)
    settings: dict[str, Any] = {}
    for file in files:
        settings |= read_yaml(file)
    named = (settings | typed_in).get("objective.name")
    parts = [
        "usage: speechssl train [--config FILE ...] [--section.key VALUE ...]\n\n"
        "Pre-train or fine-tune; the objective decides. Later settings win over earlier ones.\n"
        "--print_config prints the resolved settings as YAML and stops.\n"
        "Several devices: torchrun --nproc_per_node N -m speechssl train ...\n"
        "             or: deepspeed --num_gpus N --module speechssl train ..."
    ]
    for name, cls in SECTIONS.items():
        if name == "optim":
            if named is None:
                rows = [f"  {n:<10}  {docstring_line(module)}" for n, module in names().items()]
                parts.append(
                    "objective:\n  --objective.name NAME  (required); one of the following or "
                    "package.module:Class;\n  NAME's own settings: speechssl train --objective.name "
                    "NAME --help\n" + "\n".join(rows)
                )
            else:
                from speechssl.lookup import find
                from speechssl.objectives.base import Objective

                chosen = typed("objective.name", str, named)
                parts.append(section_help(find(chosen, Objective).Config, "objective"))
        parts.append(section_help(cls, name))
    return "\n\n".join(parts)
