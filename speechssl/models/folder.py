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
from speechssl.unpickle import safe_load

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
    """The tensors of a folder, floating ones as fp32, on the CPU.

    Read are model.safetensors, its shards where an index names them, or else an old
    pytorch_model.bin, of which nothing but tensors is unpickled.
    Raises CheckpointError when files are missing, truncated or otherwise damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= _old_file(path) if path.name == OLD_WEIGHTS else _safe_file(path)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the tensors of a folder. Raises CheckpointError where there are none."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / _INDEX).is_file():
        names = read_json(folder, _INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(
            isinstance(n, str) and Path(n).name == n for n in names.values()
        ):
            raise CheckpointError(
                f"{folder / _INDEX}: no weight_map of tensors to files; it is damaged"
            )
        shards = [folder / name for name in sorted(set(names.values()))]
        if missing := [path.name for path in shards if not path.is_file()]:
            raise CheckpointError(
                f"{folder}: {_INDEX} names {', '.join(missing[:3])}, which is missing; copy the "
                "folder again"
            )
        return shards
    if (folder / OLD_WEIGHTS).is_file():
        return [folder / OLD_WEIGHTS]
    other = [n for n in _OTHER_WEIGHTS if (folder / n).exists()]
    hint = f"; found {other[0]}, which is not read: convert it to {WEIGHTS}" if other else ""
    raise CheckpointError(f"{folder}: no {WEIGHTS}{hint}")


def _safe_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged or truncated ({path.stat().st_size} bytes): {error}; "
            "copy or export the folder again"
        ) from error


def _old_file(path: Path) -> dict[str, Tensor]:
    """A state dict that torch.save wrote; a pickle with anything else in it is refused."""
    remedy = f"copy it again, or get the model as {WEIGHTS} from somebody you trust"
    content = safe_load(path, remedy)
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise CheckpointError(f"{path}: holds no table of tensors; expected a state dict")
    return dict(content)


OLD_WEIGHTS = "pytorch_model.bin"
_INDEX = "model.safetensors.index.json"
_METADATA = {"format": "pt"}  # what transformers asks for
_OTHER_WEIGHTS = ("pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


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
