"""Two ranks: the plain engine and DeepSpeed stages 0 to 3 side by side. Prints one JSON table."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from speechssl.engine import dist
from speechssl.engine.config import EngineConfig, OptimConfig
from speechssl.engine.loop import build_engine
from speechssl.types import Progress
from tests.distributed import toy

OPTIM = OptimConfig(lr=1e-2, steps=20, clip_norm=0.3, warmup_steps=3, decay_all=False)
STEPS = 6


def engine_for(kind, stage, dropout, precision="fp32", scale=None):
    cfg = EngineConfig(kind=kind, zero_stage=stage, precision=precision)
    device = dist.setup(group=True)
    engine = build_engine(toy.build(dropout), OPTIM, cfg, device, Progress(max_steps=20, seed=5))
    if scale:
        engine.scale.value, engine.scale.dynamic = scale, True
    return engine


def run(engine, steps, *, micro=2, bad_at=()):
    data = toy.ToyData(dist.rank(), dist.world(), micro, bad_at)
    stats = [engine.step(data.update(s)) for s in steps]
    losses = [dist.sum_numbers(float(s.loss.total))[0] for s in stats]
    return {
        "losses": losses,
        "norms": [s.grad_norm for s in stats],
        "finite": [s.finite for s in stats],
        "weights": {k: v.tolist() for k, v in engine.full_state_dict().items()},
    }


def resumed(engine, kind, stage):
    """Whether saving, loading into a new engine and going on is the same bit for bit."""
    folder = Path(dist.broadcast(tempfile.mkdtemp()))
    engine.save(folder)
    dist.barrier()
    again = engine_for(kind, stage, 0.2)
    again.load(folder)
    again.progress = engine.progress
    steps = range(engine.progress.step, engine.progress.step + 2)
    return run(again, steps) == run(engine, steps)


def main() -> None:
    out: dict[str, dict] = {}
    kinds = [("plain", 0), *(("deepspeed", s) for s in range(4))]
    for kind, stage in kinds:
        name = f"{kind}{stage}"
        out[f"{name} even"] = run(engine_for(kind, stage, 0.0), range(STEPS), micro=1)
        engine = engine_for(kind, stage, 0.2)
        out[f"{name} dropout"] = run(engine, range(STEPS), micro=3)  # six parts of five: a filler
        before = engine.full_state_dict()
        skipped = run(engine, [STEPS], bad_at=(STEPS,))
        after = engine.full_state_dict()
        out[name] = {
            "skipped": not skipped["finite"][0],
            "untouched": all(torch.equal(before[k], after[k]) for k in before),
            "after_skip": run(engine, [STEPS + 1]),
            "valid": engine.evaluate(toy.ToyValid(dist.rank(), dist.world()).batches()),
            "bitwise": resumed(engine, kind, stage),
        }
        scaled = engine_for(kind, stage, 0.0, scale=1024.0)
        out[f"{name} scaled"] = run(scaled, range(STEPS), micro=1)
    for kind, stage in kinds:  # DeepSpeed keeps autocast in a global: last
        half = engine_for(kind, stage, 0.0, "bf16")
        out[f"{kind}{stage} bf16"] = run(half, range(STEPS), micro=1)
        out[f"{kind}{stage} bf16"]["dtype"] = str(half.objective.dtype_seen)
        masters = half.objective.parameters()
        out[f"{kind}{stage} bf16"]["masters"] = sorted({str(p.dtype) for p in masters})
    if dist.is_main():
        print(json.dumps(out))
    dist.shutdown()


if __name__ == "__main__":
    main()
