"""`speechssl train`: pre-train or fine-tune; the objective decides."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.config import SECTIONS, Config, cross_checks, input_hashes, resolve
from speechssl.settings import Setting, read_arguments, read_yaml, typed

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
    from speechssl.engine.update import with_precision

    device = dist.setup(group=config.engine.kind == "deepspeed")
    cross_checks(config, device=device.type)
    config = replace(config, engine=with_precision(config.engine, device))
    progress, objective = fit(config, command)
    if dist.is_main():
        print(closing(config, progress, objective))
    # Not after an error: the other ranks may be waiting for us, and the launcher ends them.
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
    classes = class_names(cls, utterances)  # of the training data alone
    objective, origin = make_objective(config, classes, utterances)
    train_data, valid_data = make_data(config, objective, utterances, held_out)
    if dist.is_main():
        print(summary(config, objective, origin, train_data, valid_data), flush=True)
        # An existing folder may be another run's; it is ours once training has begun to export.
        if not (Path(config.run.out) / "config.yaml").exists():
            write_run_files(config, command, objective)

    def export(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        card = {
            "title": Path(config.run.out).name,
            "command": command,
            "data": ", ".join(config.data.train),
        }
        save_bundle(folder, objective, state_dict=weights, card=card)
        point_to_model(Path(config.run.out), folder)
        write_run_files(config, command, objective)

    progress = train(
        objective,
        train_data,
        valid_data,
        config.run,
        config.optim,
        config.engine,
        export=export,
        config=config.to_dict() | {"inputs": input_hashes(config)},
        seed=config.data.seed,
    )
    return progress, objective


def make_data(
    config: Config,
    objective: Objective,
    utterances: Sequence[Utterance],
    held_out: Sequence[Utterance],
) -> tuple[TrainData, EvalData | None]:
    """Training batches of one rank, and validation batches where there is a manifest for them."""
    from speechssl.cli.assembly import target_readers
    from speechssl.data.loader import EvalData, TrainData, select
    from speechssl.data.skips import Skips
    from speechssl.engine import dist

    targets = target_readers(objective, [*utterances, *held_out])
    place: dict[str, Any] = {"rank": dist.rank(), "world": dist.world(), **targets}
    geometry, plan = objective.backbone.geometry, objective.plan_fn()
    train_data = TrainData(utterances, geometry, config.data, plan, **place)
    if not held_out:
        return train_data, None
    skips = Skips()
    if known := targets.get("speaker_index"):  # a closed set: nobody else can be right
        held_out = select(held_out, geometry, config.data, skips, speaker_index=known)
    return train_data, EvalData(held_out, geometry, config.data, plan, skips=skips, **place)


def summary(
    config: Config,
    objective: Objective,
    origin: str,
    train_data: TrainData,
    valid_data: EvalData | None,
) -> str:
    """What is about to happen: model, data, what was left out, length of the run."""
    from speechssl.cli.assembly import rare_characters
    from speechssl.engine import dist

    count = sum(p.numel() for p in objective.parameters())
    learning = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    epochs = config.optim.steps / train_data.updates_per_epoch
    lines = [
        f"model      {config.objective.name} on {config.backbone.preset} {origin}, "
        f"{count / 1e6:.2f} M parameters, {learning / 1e6:.2f} M of them learn",
    ]
    fixed = sum(p.numel() for p in objective.backbone.parameters() if not p.requires_grad)
    if fixed and not config.init.from_:
        lines.append(
            f"  warning  {fixed / 1e6:.2f} M parameters of the backbone stay random: they are "
            "frozen and there is no init.from; right for a baseline only"
        )
    if objective.classes_from == "labels":
        clustering = objective.classes[0].rpartition("/")[0]
        lines.append(f"classes    {len(objective.classes)} clusters of {clustering}")
    elif objective.classes:
        shown = " ".join(objective.classes[:40]) + (" ..." if len(objective.classes) > 40 else "")
        lines.append(f"classes    {len(objective.classes)}: {shown}")
    if type(objective).classes_from == "text" and (rare := rare_characters(train_data.utterances)):
        shown = ", ".join(f"{c!r} in {n}" for c, n in rare.items())
        lines.append(
            f"  warning  characters in fewer than 3 training utterances: {shown}; "
            "normalise the transcripts (case, digits, marks) or expect errors"
        )
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


def point_to_model(out: Path, newest: Path) -> None:
    """Let `out/model` lead to the best model, or to the newest while there is no best."""
    best = out / "model_best"
    target = best if best.is_dir() else newest
    link = out / f".model.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name, target_is_directory=True)
    link.replace(out / "model")


def write_run_files(config: Config, command: str, objective: Objective) -> None:
    """`config.yaml` and `run.json` in the run's folder: what made it, and its chance levels."""
    import hashlib

    from speechssl.atomic import write_text
    from speechssl.engine.provenance import versions

    out = Path(config.run.out)
    out.mkdir(parents=True, exist_ok=True)
    config.save(out / "config.yaml")
    facts = {
        "command": command,
        "chance": objective.chance(),
        **versions(),
        "manifests": {
            path: hashlib.sha256(Path(path).read_bytes()).hexdigest()
            for path in (*config.data.train, *config.data.valid)
        },
    }
    write_text(out / "run.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def closing(config: Config, progress: Progress, objective: Objective) -> str:
    """Where everything lies and what to type next."""
    from speechssl.objectives.masking import ChannelMask

    out = Path(config.run.out)
    model = shlex.quote(str(out / "model"))
    lines = [f"\nfinished {progress.step} updates; everything lies in {out}"]
    if progress.best is not None:
        metric = objective.best_metric[0][0]
        lines.append(f"  best       {metric} {progress.best:.4g} at update {progress.best_step}")
    lines.append(f"  model      {out / 'model'} (leads to {os.readlink(out / 'model')})")
    lines.append(f"  curves     {out / 'metrics.jsonl'}")
    lines.append("next:")
    held_out = shlex.quote(config.data.valid[0]) if config.data.valid else "MANIFEST.jsonl"
    if objective.classes:
        lines.append(f"  speechssl evaluate {model} {held_out}")
        lines.append(f"  speechssl predict {model} AUDIO...")
    else:
        lines.append(f"  speechssl extract {model} {held_out} {shlex.quote(str(out / 'features'))}")
        masks = "" if config.backbone.context != "conv" else " --objective.mask.prob 0"
        if masks or config.backbone.dim < 2 * ChannelMask.length:  # as `cross_checks` asks for
            masks += " --objective.channel_mask.prob 0"
        lines.append(
            f"  speechssl train --init.from {model} --objective.name ctc{masks} --optim.lr 5e-5 "
            "--optim.steps 2000 --data.train TRANSCRIBED.jsonl --run.out exp/asr"
        )
    curves = shlex.quote(str(out / "curves.png"))
    lines.append(f"  speechssl report {shlex.quote(str(out))} --out {curves}")
    return "\n".join(lines)


def help_text(words: Sequence[str]) -> str:
    """Every setting with type, default and meaning; those of the objective once it is named."""
    from speechssl.cli.options import section_help

    files, typed_in = read_arguments(words)
    settings: dict[str, Setting] = {}
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
            parts.append(objective_help(named))
        parts.append(section_help(cls, name))
    return "\n\n".join(parts)


def objective_help(named: Setting | None) -> str:
    """The settings of the objective that is named, or the names there are."""
    from speechssl.cli.options import docstring_line, section_help
    from speechssl.lookup import find, names

    if named is None:
        rows = [f"  {name:<10}  {docstring_line(module)}" for name, module in names().items()]
        return (
            "objective:\n"
            "  --objective.name NAME  (required); one of these, or package.module:Class.\n"
            "  What NAME can be told: speechssl train --objective.name NAME --help\n"
            + "\n".join(rows)
        )
    from speechssl.objectives.base import Objective

    chosen = find(typed("objective.name", str, named), Objective)
    return section_help(chosen.Config, "objective")
