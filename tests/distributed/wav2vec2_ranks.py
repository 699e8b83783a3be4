"""Two ranks of wav2vec 2.0, plain and DeepSpeed: `wav2vec2_ranks.py CORPUS RESULT.pt`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from speechssl.data.config import DataConfig
from speechssl.data.loader import TrainData
from speechssl.data.manifest import read_manifest
from speechssl.engine import deepspeed, dist
from speechssl.engine.config import EngineConfig, OptimConfig
from speechssl.engine.loop import build_engine
from speechssl.engine.plain import PlainEngine
from speechssl.engine.update import UpdateEngine
from speechssl.models.backbone import build_backbone
from speechssl.models.presets import preset
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.types import Progress
from tests.distributed import speech

OPTIM = OptimConfig(lr=1e-2, steps=20, clip_norm=1.0, warmup_steps=2)
CFG = DataConfig(**speech.DATA)
STEPS = 5
#: Both families of normalisation; no dropout and no diversity term, so that a split is exact.
EXACT = {
    "layer": {"dropout": 0.0, "feature_grad_mult": 0.1},
    "group": {"dropout": 0.0, "conv_norm": "group", "conv_bias": False, "norm": "post"},
}
LAYERDROP = {"dropout": 0.1, "feature_dropout": 0.1, "layerdrop": 0.5}
Weights = dict[str, torch.Tensor]


def build(diversity_weight: float = 0.0, **backbone: Any) -> Wav2Vec2:
    """The tiny model, always from the same seed."""
    torch.manual_seed(0)
    cfg = Wav2Vec2.Config(**speech.OBJECTIVE, diversity_weight=diversity_weight)
    return Wav2Vec2(build_backbone(preset("tiny", **(speech.BACKBONE | backbone))), cfg)


def data_for(objective: Wav2Vec2, folder: Path, batch_sec: float) -> TrainData:
    """Training data of this rank."""
    return TrainData(
        read_manifest(folder / "train.jsonl"),
        objective.backbone.geometry,
        replace(CFG, batch_sec=batch_sec),
        objective.plan_fn(),
        rank=dist.rank(),
        world=dist.world(),
    )


def gradients(folder: Path, variant: str, batch_sec: float) -> tuple[Weights, int]:
    """Gradients of the first update over all ranks, and the number of micro-batches of this one."""
    objective = build(**EXACT[variant])
    device = torch.device("cpu")
    engine = PlainEngine(objective, OPTIM, EngineConfig(), device, Progress(max_steps=20, seed=5))
    found: Weights = {}

    def note(lr: float) -> float:
        named = objective.named_parameters()
        found.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        return 1.0

    engine._apply = note
    micro = next(data_for(objective, folder, batch_sec).updates())
    engine.step(micro)
    return found, len(micro)


def run(engine: UpdateEngine, folder: Path) -> dict[str, Any]:
    """Losses, gradient norms and final weights of a few updates."""
    objective: Any = engine.objective
    updates = data_for(objective, folder, CFG.batch_sec).updates()
    stats, dropped = [], []
    for _ in range(STEPS):
        stats.append(engine.step(next(updates)))
        dropped.append(sorted(objective.backbone.encoder.dropped))
    return {
        "losses": [dist.sum_numbers(float(s.loss.total))[0] for s in stats],
        "norms": [s.grad_norm for s in stats],
        "dropped": dropped,
        # Stage 3 leaves nothing in place of a sharded parameter.
        "sharded": all(p.numel() == 0 for p in objective.parameters()),
        "weights": engine.full_state_dict(),
    }


def shard_everything() -> None:
    """Let stage 3 shard small parameters too, as it does those of a model of real size."""
    original = deepspeed.deepspeed_config

    def changed(*args: Any) -> dict[str, Any]:
        config = original(*args)
        if config["zero_optimization"]["stage"] == 3:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    deepspeed.deepspeed_config = changed


def main() -> None:
    folder, result = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    device = dist.setup(group=True)
    out: dict[str, Any] = {}
    for variant in EXACT:
        out[variant], num_micro = gradients(folder, variant, CFG.batch_sec)
        out[f"{variant} micro"] = dist.gather(num_micro)
    shard_everything()
    engines = [EngineConfig()]
    engines += [EngineConfig("deepspeed", stage) for stage in (0, 1, 2, 3)]
    for cfg in engines:
        objective = build(diversity_weight=0.1, **LAYERDROP)
        engine = build_engine(objective, OPTIM, cfg, device, Progress(max_steps=20, seed=5))
        out[f"{cfg.kind}{cfg.zero_stage}"] = run(engine, folder)
    if dist.is_main():
        torch.save(out, result)
    dist.shutdown()


if __name__ == "__main__":
    main()
