"""The plain engine: torch alone, any number of ranks. The oracle that DeepSpeed must match."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from speechssl.engine import dist
from speechssl.engine.checkpoint import load_part
from speechssl.engine.optim import build_optimizer, clip_factor, gradient_norm
from speechssl.engine.update import AUTOCAST, UpdateEngine, to_export
from speechssl.errors import CheckpointError
from speechssl.types import Batch, Loss

_FILE = "plain.pt"


class PlainEngine(UpdateEngine):
    """Every rank holds everything; gradients are summed once per update."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.optimizer = build_optimizer(self.objective, self.optim)
        self.params = [p for group in self.optimizer.param_groups for p in group["params"]]
        dist.set_timeout(self.cfg.timeout_sec)

    def _forward(self, batch: Batch) -> Loss:
        dtype = AUTOCAST.get(self.cfg.precision, torch.float32)
        enabled = self.cfg.precision in AUTOCAST
        with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
            return self.objective(batch)

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        (loss * self.scale.value).backward()
        if not last:
            return
        for p in self.params:
            if p.grad is None:  # unused this time; ZeRO counts such a gradient as zero, so do we
                p.grad = torch.zeros_like(p)
        if dist.world() > 1:
            flat = dist.sum_(torch.cat([p.grad.reshape(-1) for p in self.params]))  # type: ignore[union-attr]
            for p, part in zip(
                self.params, flat.split([p.numel() for p in self.params]), strict=True
            ):
                p.grad = part.view_as(p)

    def _apply(self, lr: float) -> float:
        gradients = [p.grad for p in self.params if p.grad is not None]
        norm = float(gradient_norm(gradients)) / self.scale.value
        if math.isfinite(norm):
            factor = clip_factor(norm, self.optim.clip_norm) / self.scale.value
            if factor != 1.0:
                torch._foreach_mul_(gradients, factor)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: Path) -> None:
        """Rank 0 writes weights, optimizer and loss scale into one file."""
        if dist.is_main():
            state = {
                "module": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scale": self.scale.state(),
            }
            torch.save(state, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, with any number of ranks."""
        state = load_part(folder / _FILE)
        try:
            self.objective.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scale.restore(state["scale"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / _FILE} does not fit this model: {error}; was the code changed?"
            ) from error

    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights and buffers, on rank 0."""
        if not dist.is_main():
            return {}
        return {name: to_export(value) for name, value in self.objective.state_dict().items()}
