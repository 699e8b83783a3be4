"""The `engine`, `optim` and `run` sections of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """What carries out the updates."""

    kind: Literal["plain", "deepspeed"] = "plain"
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed: 1 shards optimizer, 2 gradients, 3 parameters
    # Of activations; weights stay fp32. auto: bf16 where the hardware computes in it, else fp32.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    timeout_sec: float = 600.0  # a rank that does not answer for so long is an error
    max_nonfinite_steps: int = 10  # updates in a row with NaN or infinity before giving up

    def __post_init__(self) -> None:
        if self.kind == "plain" and self.zero_stage:
            raise ConfigError(
                f"engine.zero_stage is {self.zero_stage}, but engine.kind is plain, which shards "
                "nothing; set engine.kind deepspeed or leave zero_stage at 0"
            )
        if self.timeout_sec <= 0:
            raise ConfigError(f"engine.timeout_sec: got {self.timeout_sec}, expected above 0")
        if self.max_nonfinite_steps < 1:
            raise ConfigError(
                f"engine.max_nonfinite_steps: got {self.max_nonfinite_steps}, expected 1 or more"
            )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate; defaults follow wav2vec 2.0 pre-training (arXiv 2006.11477)."""

    lr: float = 5e-4  # peak
    steps: int = 400_000  # optimizer updates of the whole run
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    decay_all: bool = True  # False: biases, norms and other vectors are not decayed
    clip_norm: float = 0.0  # largest global gradient norm; 0 = no clipping
    schedule: Literal["linear", "tri_stage", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    hold_steps: int = 0  # tri_stage: updates at the peak between warm-up and decay
    start_scale: float = 0.01  # warm-up starts at this share of lr
    final_scale: float | None = None  # decay ends at this share; None: 0.05 (tri_stage) or 0

    def __post_init__(self) -> None:
        def need(good: bool, key: str, expected: str) -> None:
            if not good:
                raise ConfigError(f"optim.{key}: got {getattr(self, key)}, expected {expected}")

        need(self.lr > 0, "lr", "above 0")
        need(self.steps >= 1, "steps", "1 or more updates")
        need(all(0 <= b < 1 for b in self.betas), "betas", "two numbers in [0, 1)")
        need(self.eps > 0, "eps", "above 0")
        need(self.weight_decay >= 0, "weight_decay", "0 or more")
        need(self.clip_norm >= 0, "clip_norm", "0 (off) or more")
        need(0 <= self.warmup_steps <= self.steps, "warmup_steps", f"0 to steps ({self.steps})")
        need(0 <= self.start_scale <= 1, "start_scale", "a share of lr, 0 to 1")
        if self.schedule == "tri_stage":
            most = self.steps - self.warmup_steps
            need(0 <= self.hold_steps <= most, "hold_steps", f"0 to steps - warmup_steps ({most})")
            good = self.final_scale is None or 0 < self.final_scale <= 1
            need(good, "final_scale", "above 0 to 1 for tri_stage, whose decay is exponential")
        else:
            need(self.hold_steps == 0, "hold_steps", "0: only the tri_stage schedule holds")
            good = self.final_scale is None or 0 <= self.final_scale <= 1
            need(good, "final_scale", "a share of lr, 0 to 1")
        if self.schedule == "constant":
            need(self.final_scale is None, "final_scale", "none: a constant rate does not decay")


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and how often it reports, validates and saves."""

    out: str = "exp/run"
    log_every_steps: int = 50
    valid_every_steps: int = 1000
    save_every_steps: int = 1000
    keep: int = 2  # newest checkpoints kept; the best one is kept besides
    resume: Literal["auto", "must", "never"] = "auto"
    watchdog: Literal["warn", "stop", "off"] = "warn"  # on signs that the run is dying
    watchdog_steps: int = 400  # updates at chance, without a gradient, that are death

    def __post_init__(self) -> None:
        counts = ("log_every_steps", "valid_every_steps", "save_every_steps", "keep")
        for key in (*counts, "watchdog_steps"):
            if getattr(self, key) < 1:
                raise ConfigError(f"run.{key}: got {getattr(self, key)}, expected 1 or more")
        if not self.out:
            raise ConfigError("run.out is empty; name the folder that the run writes to")
