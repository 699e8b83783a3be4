"""The one place that unpickles, and runs no code that a file names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from speechssl.errors import CheckpointError


def safe_load(path: Path | str, remedy: str, allowed: tuple[type, ...] = ()) -> Any:
    """What torch.save wrote: tensors and plain values, besides the `allowed` classes.

    `remedy` ends the complaint. Raises CheckpointError when the file is missing, damaged or holds
    anything else, which it names.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        reason = str(error).strip()
        if code := re.search(r"GLOBAL (\S+)", reason):
            why = f"its pickle asks for {code[1]}, which is code and not a tensor"
        else:
            why = reason.splitlines()[0] if reason else type(error).__name__
        raise CheckpointError(f"{path}: cannot be loaded safely: {why}; {remedy}") from error
