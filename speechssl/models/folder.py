"""The files of a model folder: written all or nothing, read without pickle."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import CheckpointError

WEIGHTS = "model.safetensors"


def write_folder(folder: Path, files: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write text (str) and JSON (anything else) files and fp32 weights as one new `folder`.

    An old folder of that name is replaced. Raises CheckpointError when the disk refuses.
    """
    from safetensors.torch import save_file

    folder = Path(os.path.abspath(folder))  # keeps the name of a link, unlike resolve
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        for name, content in files.items():
            text = content if isinstance(content, str) else _dumps(content)
            (fresh / name).write_text(text, encoding="utf-8")
        save_file({k: _portable(v) for k, v in weights.items()}, fresh / WEIGHTS, _METADATA)
        for path in (*fresh.iterdir(), fresh):
            _sync(path)
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, old)
        os.rename(fresh, folder)
        _sync(folder.parent)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(fresh, ignore_errors=True)
        raise CheckpointError(
            f"cannot write model folder {folder}: {error}; check space and permissions"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON table of the folder. Raises CheckpointError when it is missing or damaged."""
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        shown = ", ".join(there[:8]) or "nothing"
        raise CheckpointError(
            f"{folder} is not a model folder: no {name} (found: {shown}); "
            "training writes one to its model/ folder"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got a {type(content).__name__}, expected a table of keys")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, floating ones as fp32, on the CPU.

    Raises CheckpointError when the file is missing, truncated or otherwise damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        other = [n for n in _OTHER_WEIGHTS if (folder / n).exists()]
        hint = f"; found {other[0]}, which is not read: convert it to {WEIGHTS}" if other else ""
        raise CheckpointError(f"{folder}: no {WEIGHTS}{hint}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged or truncated ({path.stat().st_size} bytes): {error}; "
            "copy or export the folder again"
        ) from error
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


_METADATA = {"format": "pt"}  # what transformers asks for
_OTHER_WEIGHTS = ("pytorch_model.bin", "model.safetensors.index.json", "tf_model.h5")


def _portable(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, fp32 when floating: no storage is shared between tensors."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _dumps(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
