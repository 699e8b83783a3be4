"""Learning rates as pure functions of the step: nothing to save, nothing to shift on resume."""

from __future__ import annotations

import math

from speechssl.engine.config import OptimConfig


def lr_at(cfg: OptimConfig, step: int) -> float:
    """Learning rate of the update that follows `step` finished ones.

    Warm-up is a straight line from `start_scale * lr` to `lr`. Then `linear` and `cosine` fall to
    `final_scale * lr` at `steps`; `tri_stage` holds, then decays exponentially (SpecAugment,
    arXiv 1904.08779, section 4.2, as used by wav2vec 2.0); `constant` stays.
    """
    if step < cfg.warmup_steps:
        return cfg.lr * (cfg.start_scale + (1 - cfg.start_scale) * step / cfg.warmup_steps)
    begin = cfg.warmup_steps + cfg.hold_steps
    done = min(max(step - begin, 0) / max(cfg.steps - begin, 1), 1.0)  # share of the decay
    match cfg.schedule:
        case "tri_stage":
            final = 0.05 if cfg.final_scale is None else cfg.final_scale
            return cfg.lr * final**done
        case "linear":
            return cfg.lr * (1 - (1 - (cfg.final_scale or 0.0)) * done)
        case "cosine":
            final = cfg.final_scale or 0.0
            return cfg.lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))
        case "constant":
            return cfg.lr
