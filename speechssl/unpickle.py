"""The one place that unpickles, and runs no code that a file names."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from speechssl.errors import CheckpointError


class Inert:
    """Stands for an object whose class is not here: keeps what was stored and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        """Keep the state as attributes, or as `state` where it is no table."""
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def safe_load(
    path: Path | str,
    remedy: str,
    allowed: tuple[type, ...] = (),
    inert: Collection[str] = (),
) -> Any:
    """What torch.save wrote: tensors and plain values, besides the `allowed` classes.

    Classes of the packages in `inert` become `Inert`: their code is neither needed nor run.
    `remedy` ends the complaint. Raises CheckpointError when the file is missing, damaged or holds
    anything else, which it names.
    """
    stand_ins: dict[str, type] = {}
    while True:
        names: list[Any] = [*allowed, *((cls, name) for name, cls in stand_ins.items())]
        try:
            with torch.serialization.safe_globals(names):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen kinds for damaged files
            reason = str(error).strip()
            code = re.search(r"GLOBAL (\S+)", reason)
            if code and code[1].split(".")[0] in inert and code[1] not in stand_ins:
                stand_ins[code[1]] = type(code[1].rpartition(".")[2], (Inert,), {})
                continue
            if code:
                why = f"its pickle asks for {code[1]}, which is code and not a tensor"
            else:
                # torch's first paragraph advises to load without this safety; the second says why.
                lines = [x for x in reason.splitlines() if x and "weights_only" not in x]
                why = lines[0] if lines else type(error).__name__
            raise CheckpointError(f"{path}: cannot be loaded safely: {why}; {remedy}") from error
