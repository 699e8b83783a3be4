"""What a run tells: metrics.jsonl, a progress bar or console lines, TensorBoard. Rank 0 only."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from speechssl.atomic import write_text

log = logging.getLogger(__name__)

_ON_BAR = ("loss", "accuracy", "wer")
_LEFT_OUT_OF_CONSOLE = frozenset({"padding", "skipped_updates"})


class Journal:
    """Writes below `out`; lines of an earlier attempt after `first_step` are taken back."""

    def __init__(self, out: Path, first_step: int, max_steps: int, *, speaks: bool = True) -> None:
        self.path = out / "metrics.jsonl"
        self.first_step, self.max_steps, self.speaks = first_step, max_steps, speaks
        self.started = time.monotonic()
        self.board = self.bar = None
        self.on_bar: dict[str, float] = {}
        if not speaks:
            return
        _take_back(self.path, first_step)
        self.board = _tensorboard(out / "tensorboard", first_step)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=max_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Move the progress bar to `step` finished updates."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def record(
        self, step: int, split: str, values: Mapping[str, float], chance: Mapping[str, float]
    ) -> None:
        """One line of metrics.jsonl, one of the console, one point of each curve."""
        if not self.speaks:
            return
        line: dict[str, Any] = {"step": step, "split": split}
        line |= {k: v if math.isfinite(v) else None for k, v in values.items()}
        line["time"] = round(time.time(), 3)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{split}/{name}", value, step)
            self.board.flush()
        told = f"{split} {step}/{self.max_steps}  {describe(values, chance)}"
        if self.bar is None:
            log.info("%s%s", told, f"  ETA {self._eta(step)}" if split == "train" else "")
        else:
            self.on_bar |= {name: values[name] for name in _ON_BAR if name in values}
            self.bar.set_postfix_str(describe(self.on_bar, chance))
            self.bar.write(told, file=sys.stderr)

    def _eta(self, step: int) -> str:
        done = step - self.first_step
        if done < 1:
            return "unknown"
        left = (time.monotonic() - self.started) / done * (self.max_steps - step)
        return str(timedelta(seconds=round(left)))

    def close(self) -> None:
        """Release bar and files."""
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()


def describe(values: Mapping[str, float], chance: Mapping[str, float]) -> str:
    """`loss 4.61 (chance 4.62)  accuracy 0.0151 (chance 0.0099)`: what is not learnt shows."""
    parts = []
    for name, value in values.items():
        if name in _LEFT_OUT_OF_CONSOLE and not (name == "skipped_updates" and value):
            continue
        level = f" (chance {chance[name]:.4g})" if name in chance else ""
        parts.append(f"{name} {value:.4g}{level}")
    return "  ".join(parts)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one cut short by a crash is left out."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and "step" in line:
                    lines.append(line)
    return lines


def _take_back(path: Path, first_step: int) -> None:
    """Drop lines that a run which resumes at `first_step` will write again."""
    if path.exists():
        kept = [json.dumps(line) for line in read_metrics(path) if line["step"] <= first_step]
        write_text(path, "".join(f"{line}\n" for line in kept if first_step))


def _tensorboard(folder: Path, first_step: int) -> Any:
    """A TensorBoard writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
