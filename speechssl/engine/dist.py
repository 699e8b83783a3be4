"""Ranks and reductions; every function also works in a single process without a launcher."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as td
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.kernels.allocator import keep_freed_memory

SETUP_TIMEOUT_SEC = 1800.0  # ranks of a big job start far apart
_joined: list[str] = []  # backends of the groups this process has been in, for `end_process`


def setup(*, group: bool = False) -> torch.device:
    """Join the processes a launcher started and return this rank's device.

    Reads RANK, WORLD_SIZE and LOCAL_RANK (torchrun, deepspeed) or what `srun` sets. One process
    needs no group unless `group` asks for one, as DeepSpeed does. A second call changes nothing.

    Raises ConfigError when srun started several tasks and nobody named the meeting point, or when
    there are more processes than GPUs on this machine.
    """
    _from_slurm()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local} of this machine (counted from 0) has no GPU: "
            f"{torch.cuda.device_count()} can be seen; start one process a GPU, or hide the GPUs "
            "to train on the CPU: CUDA_VISIBLE_DEVICES="
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    if td.is_initialized():
        return device
    backend = "nccl" if cuda else "gloo"
    timeout = timedelta(seconds=SETUP_TIMEOUT_SEC)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        td.init_process_group(backend, timeout=timeout)
    elif group:
        for name in ("RANK", "LOCAL_RANK"):
            os.environ.setdefault(name, "0")
        os.environ.setdefault("WORLD_SIZE", "1")
        # A store in memory needs no port, so that runs beside each other cannot collide.
        td.init_process_group(backend, store=td.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        return device
    _joined.append(backend)
    return device


def _from_slurm() -> None:
    """Translate the variables of an `srun` step; those of a mere allocation are ignored."""
    if "RANK" in os.environ or "SLURM_STEP_NUM_TASKS" not in os.environ:
        return
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    if tasks > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError(
            f"srun started {tasks} tasks, but MASTER_ADDR and MASTER_PORT are not set; before "
            'srun: export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) '
            "MASTER_PORT=29500"
        )
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = str(tasks)
    # With --gpus-per-task every task sees its own GPU alone, as number 0.
    alone = torch.cuda.is_available() and torch.cuda.device_count() == 1
    os.environ["LOCAL_RANK"] = "0" if alone else os.environ["SLURM_LOCALID"]


def set_timeout(seconds: float) -> None:
    """Let every collective of every existing group fail after `seconds` instead of hanging.

    The time-out given when a group is made does not reach the groups that DeepSpeed makes for
    itself, hence this visit to all of them once they exist.
    """
    if not td.is_initialized():
        return
    from torch.distributed import distributed_c10d as c10d

    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def shutdown() -> None:
    """Leave the group, if there is one."""
    if td.is_initialized():
        td.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """Exit with `code`; where there has been a group, without tearing the interpreter down.

    gloo's threads live on after `shutdown` for as long as anybody, such as DeepSpeed, refers to the
    group. One that frees a tensor while the interpreter ends aborts the process (see pytorch's
    pull request 179291), and the launcher would report a finished run as failed.
    """
    if not _joined:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # A closed pipe is no reason to change the answer.
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def rank() -> int:
    """Number of this process, 0 without a group."""
    return td.get_rank() if td.is_initialized() else 0


def world() -> int:
    """Number of processes, 1 without a group."""
    return td.get_world_size() if td.is_initialized() else 1


def is_main() -> bool:
    """Whether this process speaks and writes for all."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        td.barrier()


def sum_(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place, of a tensor on the training device."""
    if world() > 1:
        td.all_reduce(tensor)
    return tensor


def sum_numbers(*values: float) -> list[float]:
    """Each number summed over ranks, in float64 (whole numbers are exact up to 2**53)."""
    if world() == 1:
        return [float(v) for v in values]
    device = "cuda" if td.get_backend() == "nccl" else "cpu"
    return sum_(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def all_reduce_sum(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor summed over ranks, as float64 on the CPU.

    The ranks may hold different names: a missing one counts as zero. One collective for the names
    and one for all the values.
    """
    mine = {name: tuple(value.shape) for name, value in tensors.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for theirs in gather(mine):
        shapes |= theirs
    if not shapes:
        return {}
    names = sorted(shapes)
    device = next((v.device for v in tensors.values()), torch.device("cpu"))
    if world() > 1:
        device = torch.device("cuda" if td.get_backend() == "nccl" else "cpu")
    parts = [
        tensors[name].detach().to(device, torch.float64).reshape(-1)
        if name in tensors
        else torch.zeros(shapes[name], dtype=torch.float64, device=device).reshape(-1)
        for name in names
    ]
    flat = sum_(torch.cat(parts)).cpu()
    split = flat.split([part.numel() for part in parts])
    return {n: part.reshape(shapes[n]) for n, part in zip(names, split, strict=True)}


def any_true(flag: bool) -> bool:
    """Whether any rank says so; all ranks get the same answer."""
    return sum_numbers(float(flag))[0] > 0


def gather(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    td.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if world() == 1:
        return value
    box = [value]
    td.broadcast_object_list(box, src=0)
    return box[0]
