"""What a rank leaves behind when it fails: its traceback, in a file of its own."""

from __future__ import annotations

import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechssl.engine import dist
from speechssl.engine.base import InterruptedAndSaved


@dataclass
class Place:
    """How far a run has come."""

    step: int = 0


@contextmanager
def kept_tracebacks(out: Path) -> Iterator[Place]:
    """Append the traceback of an error to `out/errors/rank_N.txt`, and note that on the error.

    A launcher shows the output of one rank and often not of the one that failed first. The step is
    what the block has written into the place it is given.
    """
    place = Place()
    try:
        yield place
    except InterruptedAndSaved:
        raise
    except Exception as error:
        path = out / "errors" / f"rank_{dist.rank()}.txt"
        lines = [
            f"time     {time.strftime('%Y-%m-%dT%H:%M:%S%z')}",
            f"command  {shlex.join(sys.argv)}",
            f"rank     {dist.rank()} of {dist.world()}",
            f"step     {place.step}",
            "".join(traceback.format_exception(error)),
        ]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
            error.add_note(f"(traceback in {path})")
        except OSError as refused:  # such as the full disk that is the error itself
            error.add_note(f"(traceback could not be kept in {path}: {refused.strerror})")
        raise
