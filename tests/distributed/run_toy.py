"""One training run of the toy, as a process of its own: `run_toy.py OUT [options]`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from speechssl.engine import dist
from speechssl.engine.config import EngineConfig, OptimConfig, RunConfig
from speechssl.engine.loop import train
from speechssl.errors import SpeechSSLError
from tests.distributed import toy


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", default="plain")
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--send", help="NAME:STEP:RANK sent by the process to itself")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    dist.setup(group=args.kind == "deepspeed")

    def before(step: int) -> None:
        if args.send:
            name, at, rank = args.send.split(":")
            if int(at) == step and int(rank) == dist.rank():
                os.kill(os.getpid(), getattr(signal, name))

    def export(folder: Path, weights: dict[str, torch.Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(weights, folder / "weights.pt")

    optim = OptimConfig(lr=1e-2, steps=10, clip_norm=1.0, warmup_steps=2)
    engine = EngineConfig(kind=args.kind, zero_stage=args.zero_stage)
    run = RunConfig(out=str(args.out), log_every_steps=2, valid_every_steps=4, save_every_steps=3)
    data = toy.ToyData(dist.rank(), dist.world(), 2, before=before)
    valid = toy.ToyValid(dist.rank(), dist.world())
    config = {"optim": {"lr": optim.lr}}
    try:
        done = train(
            toy.build(0.1), data, valid, run, optim, engine, export=export, config=config, seed=3
        )
    except SpeechSSLError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    if dist.is_main():
        print(json.dumps({"step": done.step, "best_step": done.best_step}))
    dist.shutdown()
    return 0


if __name__ == "__main__":
    dist.end_process(main())
