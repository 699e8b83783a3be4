"""The DeepSpeed engine: ZeRO stages 0 to 3, every setting written out, known traps closed.

The only module that imports deepspeed. Four of its habits are corrected here: at stage 3 a
parameter without a gradient gets last step's again; at stage 0 neither norm nor NaN is checked;
the fp16 scaler of `torch_autocast` clips scaled gradients and never recovers from an overflow; its
checkpoints are unpickled without limits.
"""

from __future__ import annotations

import contextlib
import copyreg
import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.atomic import write_text
from speechssl.engine import dist
from speechssl.engine.checkpoint import load_part
from speechssl.engine.optim import build_optimizer, clip_factor, gradient_norm
from speechssl.engine.update import AUTOCAST, UpdateEngine, to_export
from speechssl.errors import CheckpointError, ConfigError
from speechssl.types import Batch, Loss

_TAG = "shards"
_BUCKET = 2**26  # elements per reduction, 256 MB
_ALIGNED = 2**10  # buckets must be a multiple of its alignment


def import_deepspeed() -> Any:
    """DeepSpeed, imported quietly: no C++ compiled, no log on stdout.

    Raises ConfigError when it is not installed.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            import deepspeed
            import deepspeed.comm
            import deepspeed.ops
    except ImportError as error:
        raise ConfigError(
            f"engine.kind is deepspeed, but it cannot be imported: {error}; "
            "pip install deepspeed, or set engine.kind plain"
        ) from error
    from deepspeed.utils import logger

    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    logger.setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # Its shared-memory operator, which only CPUs have and only inference uses, would be
        # compiled at start, and hang on a stale lock file. Asking on a GPU probes compilers.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(
    zero_stage: int, precision: str, clip_norm: float, world: int, numel: int
) -> dict[str, Any]:
    """The whole DeepSpeed configuration; nothing that matters is left to a default.

    Accumulation boundaries are set by us, so its own counter stays at one. Gradients are summed
    and sent in fp32 at every precision. At stage 0 clipping is ours (the value there is 0).
    """
    bucket = min(_BUCKET, -(-numel // _ALIGNED) * _ALIGNED)
    zero: dict[str, Any] = {
        "stage": zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        "overlap_comm": False,
        "round_robin_gradients": False,
        "load_from_fp32_weights": True,
        "elastic_checkpoint": False,
        "ignore_unused_parameters": True,
    }
    if zero_stage == 3:
        zero |= {
            "sub_group_size": 1_000_000_000,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": False,
            "memory_efficient_linear": False,
        }
    return {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": True,
        "gradient_clipping": clip_norm if zero_stage else 0.0,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "fp16": {"enabled": False},
        "bf16": {"enabled": False, "check_grad_overflow": True},
        "torch_autocast": {
            "enabled": precision in AUTOCAST,
            "dtype": "float16" if precision == "fp16" else "bfloat16",
            # The modules whose gradients would be SENT in low precision: none. Which operations
            # run in it is torch.autocast's own list.
            "lower_precision_safe_modules": [],
        },
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice a step
        "memory_breakdown": False,
        "dump_state": False,
        "disable_allgather": False,
    }


class DeepSpeedEngine(UpdateEngine):
    """The same update as the plain engine, with optimizer, gradients or weights sharded."""

    def __init__(self, *args, out: Path | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        deepspeed = import_deepspeed()
        self.collective_forward = self.cfg.zero_stage == 3
        params = [p for p in self.objective.parameters() if p.requires_grad]
        config = deepspeed_config(
            self.cfg.zero_stage,
            self.cfg.precision,
            self.optim.clip_norm,
            dist.world(),
            sum(p.numel() for p in params),
        )
        if out is not None and dist.is_main():
            write_text(out / "deepspeed_config.json", json.dumps(config, indent=1) + "\n")
        with contextlib.redirect_stdout(sys.stderr):
            deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
            self.engine, *_ = deepspeed.initialize(
                model=self.objective,
                optimizer=build_optimizer(self.objective, self.optim),
                config=config,
                dist_init_required=False,
            )
        self._correct()
        self.engine.checkpoint_engine = _safe_checkpoint_engine()
        dist.set_timeout(self.cfg.timeout_sec)

    def _correct(self) -> None:
        """Put our loss scale in the place of its own; check the private names we rely on."""
        stage, optimizer = self.cfg.zero_stage, self.engine.optimizer
        wanted = {
            "engine.torch_autocast_z0_gradscaler": hasattr(
                self.engine, "torch_autocast_z0_gradscaler"
            ),
            "engine.checkpoint_engine": hasattr(self.engine, "checkpoint_engine"),
            "optimizer.overflow": stage == 0 or hasattr(optimizer, "overflow"),
            "optimizer.override_loss_scale": stage == 0
            or hasattr(optimizer, "override_loss_scale"),
            "optimizer.torch_autocast_gradscaler": stage == 0
            or hasattr(optimizer, "torch_autocast_gradscaler"),
            "optimizer.grad_partitions_flat_buffer": stage < 3
            or hasattr(optimizer, "grad_partitions_flat_buffer"),
        }
        missing = [name for name, there in wanted.items() if not there]
        if missing:
            import deepspeed

            raise ConfigError(
                f"deepspeed {deepspeed.__version__} lacks {', '.join(missing)}, which this engine "
                "needs; install the version of the constraints file"
            )
        self.engine.torch_autocast_z0_gradscaler = None
        if stage:
            optimizer.torch_autocast_gradscaler = None

    def _forward(self, batch: Batch) -> Loss:
        return self.engine(batch)

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        loss = loss * dist.world()  # it averages over ranks, we want the sum
        if self.cfg.zero_stage == 0:
            loss = loss * self.scale.value
        elif self.scale.dynamic:
            self.engine.optimizer.override_loss_scale(self.scale.value)
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def _apply(self, lr: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        if self.cfg.zero_stage == 0:
            return self._apply_unsharded()
        self.engine.step()
        norm = math.inf
        if not self.engine.optimizer.overflow:
            norm = float(self.engine.get_global_grad_norm())
        if self.cfg.zero_stage == 3:
            # Never cleared by DeepSpeed: a parameter unused next time would be updated by it.
            self.engine.optimizer.grad_partitions_flat_buffer.zero_()
        return norm

    def _apply_unsharded(self) -> float:
        """Stage 0: norm, finiteness and clipping are ours."""
        gradients = [p.grad for p in self.objective.parameters() if p.grad is not None]
        norm = float(gradient_norm(gradients)) / self.scale.value
        if not math.isfinite(norm):
            self.engine.zero_grad()
            return norm
        factor = clip_factor(norm, self.optim.clip_norm) / self.scale.value
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        self.engine.step()
        return norm

    def save(self, folder: Path) -> None:
        """All ranks write their shards."""
        writer = self.engine.checkpoint_engine
        writer.error = None
        with contextlib.redirect_stdout(sys.stderr):
            self.engine.save_checkpoint(
                str(folder), tag=_TAG, client_state={"scale": self.scale.state()}, save_latest=False
            )
        if dist.is_main():  # a script that unpickles without limits
            (folder / "zero_to_fp32.py").unlink(missing_ok=True)
        if writer.error is not None:
            raise writer.error

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote; at stages 1 to 3 with as many ranks as then."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                path, client = self.engine.load_checkpoint(str(folder), tag=_TAG)
        except (KeyError, RuntimeError, ValueError, AssertionError, OSError) as error:
            raise CheckpointError(
                f"{folder / _TAG} does not fit this model: {error}; was the code changed?"
            ) from error
        if path is None:
            raise CheckpointError(f"{folder / _TAG}: DeepSpeed found nothing to load")
        self.scale.restore(client["scale"])

    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights and buffers, on rank 0; stage 3 gathers one parameter at a time."""
        if self.cfg.zero_stage < 3:
            if not dist.is_main():
                return {}
            return {name: to_export(v) for name, v in self.objective.state_dict().items()}
        import deepspeed

        full: dict[str, Tensor] = {}
        params = dict(self.objective.named_parameters(remove_duplicate=False))
        for name, parameter in params.items():
            with deepspeed.zero.GatheredParameters([parameter]):
                if dist.is_main():
                    full[name] = to_export(parameter.data)
        if not dist.is_main():
            return {}
        # In the order of an unsharded state dict, with the buffers and without what it leaves out.
        names = self.objective.state_dict()
        return {n: full[n] if n in full else to_export(value) for n, value in names.items()}


def _safe_checkpoint_engine() -> Any:
    """DeepSpeed's writer and reader of files, loading nothing but tensors and three own classes."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # Python before 3.11.4 pickles an enum as a call of `getattr`, which no safe reader allows.
    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (int(stage),)))

    class SafeCheckpointEngine(TorchCheckpointEngine):
        """Keeps a write error until all ranks have left DeepSpeed's barriers."""

        error: Exception | None = None

        def save(self, state_dict: dict[str, Any], path: str) -> None:
            try:
                torch.save(state_dict, path)
            except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
                self.error = error

        def load(self, path: str, map_location: Any = None) -> Any:
            return load_part(path, (LossScaler, ZeroStageEnum, fragment_address))

    return SafeCheckpointEngine()
