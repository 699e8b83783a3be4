"""`speechssl extract`: the features of audio files, into a folder of .npy shards with an index."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from speechssl.cli.inputs import add_model_options
from speechssl.errors import ConfigError

if TYPE_CHECKING:
    from speechssl.extract.extractor import Layer


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl extract",
        description="Write features (.npy shards and a JSONL index). Started again, it goes on "
        "where it stopped; under torchrun or srun the shards are shared out.",
    )
    p.add_argument("model", help="model folder, hub id, or fairseq or torchaudio file")
    p.add_argument("source", help="manifest (.jsonl), folder or audio file")
    p.add_argument("out", help="folder to write")
    p.add_argument(
        "--layer",
        default="-1",
        help="0 to L (L = last state), negative from the end, all, or mean (%(default)s)",
    )
    p.add_argument(
        "--convention",
        choices=("s3prl", "hf"),
        default="s3prl",
        help="last state of a pre-norm network after its final norm (s3prl) or before it (hf, as "
        "hidden_states of transformers 5) (%(default)s)",
    )
    p.add_argument("--shard-sec", type=float, default=3600.0, help="audio per shard (%(default)s)")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(%(default)s)")
    add_model_options(p)
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb; exit code 3 when some of the audio could not be used."""
    args = parser().parse_args(argv)
    layer = _layer(args.layer)
    from speechssl.cli.inputs import bar, pick_device, tell_skipped, utterances_of
    from speechssl.data.skips import Skips
    from speechssl.extract.extractor import Extractor
    from speechssl.extract.store import write_features
    from speechssl.models.bundle import load

    skips = Skips()
    utterances = utterances_of([args.source], skips)
    bundle = load(args.model, pick_device(args.device), plugins=args.plugins)
    extractor = Extractor(
        bundle, batch_sec=args.batch_sec, precision=args.precision, convention=args.convention
    )
    rank, world = place()
    written = write_features(
        args.out,
        utterances,
        extractor,
        skips,
        layer=layer,
        model=args.model,
        shard_sec=args.shard_sec,
        rank=rank,
        world=world,
        shown=bar,
    )
    tell_skipped(skips)
    print(
        f"{args.out}: {written} utterances written, layer {layer}, {extractor.backbone.dim} "
        f"dimensions, {extractor.geometry.rate_hz / extractor.geometry.hop:g} frames a second"
    )
    print("read them: from speechssl.extract.store import open_features")
    return 3 if skips.total else 0


def place() -> tuple[int, int]:
    """(process number, number of processes) as torchrun or srun say; alone otherwise."""
    for number, total in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if number in os.environ and total in os.environ:
            return int(os.environ[number]), int(os.environ[total])
    return 0, 1


def _layer(text: str) -> Layer:
    if text == "all" or text == "mean":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"--layer: got '{text}', expected a number, 'all' or 'mean'") from error
