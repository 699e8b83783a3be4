"""Two ranks of DinoSR, plain and DeepSpeed: `teacher_ranks.py CORPUS RESULT.pt`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from speechssl.engine import dist
from speechssl.engine.config import EngineConfig, OptimConfig
from speechssl.engine.loop import build_engine
from speechssl.models.backbone import build_backbone
from speechssl.models.presets import preset
from speechssl.objectives.context_teacher import Decay
from speechssl.objectives.dinosr import DinoSR
from speechssl.objectives.masking import SpanMask
from speechssl.types import Progress
from tests.distributed import speech, wav2vec2_ranks

OPTIM = OptimConfig(lr=1e-3, steps=20, clip_norm=1.0, warmup_steps=2)
ENGINES = [EngineConfig(), *(EngineConfig("deepspeed", stage) for stage in (0, 1, 2))]


def run(folder: Path, cfg: EngineConfig) -> dict[str, Any]:
    """Losses, and the weights, teacher and codebooks after a few updates."""
    torch.manual_seed(0)
    backbone = build_backbone(preset("tiny", **speech.BACKBONE, dropout=0.0))
    settings = DinoSR.Config(
        mask=SpanMask(0.5, 3, 1), top_layers=2, codes=8, ema=Decay(0.9, 0.99, 10)
    )
    objective: Any = DinoSR(backbone, settings)
    progress = Progress(max_steps=20, seed=5)
    engine: Any = build_engine(objective, OPTIM, cfg, torch.device("cpu"), progress)
    return wav2vec2_ranks.run(engine, folder)


def main() -> None:
    folder, result = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.setup(group=True)
    out = {f"{cfg.kind}{cfg.zero_stage}": run(folder, cfg) for cfg in ENGINES}
    if dist.is_main():
        torch.save(out, result)
    dist.shutdown()


if __name__ == "__main__":
    main()
