"""Learning curves of one or several runs, from their metrics.jsonl, as one picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.errors import DataError

#: What is drawn, in this order, where at least one run logged it; and how its axis is named.
PANELS = {
    "loss": "loss",
    "contrastive": "contrastive loss (nats)",
    "accuracy": "accuracy",
    "wer": "word error rate",
    "cer": "character error rate",
    "code_ppl": "code perplexity",
    "target_ppl": "perplexity of the teacher's codes",
    "prob_ppl": "softmax perplexity",
    "grad_norm": "gradient norm",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


@dataclass(frozen=True)
class RunCurves:
    """What a run logged: (split, metric) -> (steps, values), and its chance levels."""

    curves: Mapping[tuple[str, str], tuple[list[int], list[float]]]
    chance: Mapping[str, float] = field(default_factory=dict)


def read_curves(run: str | Path) -> RunCurves:
    """The curves of a run folder; lines cut short by a crash are left out.

    A step logged twice (after a resume) counts as logged last. Raises DataError when the folder
    holds no metrics.
    """
    path = Path(run) / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected the folder of a training run"
        ) from error
    points: dict[tuple[str, str], dict[int, float]] = {}
    for line in lines:
        for split, step, name, value in _points(line):
            points.setdefault((split, name), {})[step] = value
    if not points:
        raise DataError(f"{path}: no metrics yet; wait for run.log_every_steps updates")
    curves = {}
    for key, values in points.items():
        steps = sorted(values)
        curves[key] = (steps, [values[step] for step in steps])
    return RunCurves(curves, _chance(Path(run)))


def plot_curves(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    labels: Sequence[str] | None = None,
    smooth: int = 1,
) -> None:
    """Draw the runs into `out` (.png, .svg, .pdf): a panel a metric; train thin, valid with dots.

    `smooth` averages that many training points. Dashed lines are chance levels.
    """
    found = [read_curves(run) for run in runs]
    names = list(labels or _short_names([str(run) for run in runs]))
    panels = [m for m in PANELS if any((s, m) in r.curves for r in found for s in _SPLITS)]
    if not panels:
        raise DataError(f"none of {', '.join(map(str, runs))} logged any of {', '.join(PANELS)}")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for index, metric in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        for run, name, colour in zip(found, names, _cycle(len(found)), strict=True):
            _draw(axes, run, metric, name, colour, smooth)
        axes.set_title(PANELS[metric], fontsize=10)
        axes.set_xlabel("updates", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(True, alpha=0.3, linewidth=0.5)
        axes.legend(fontsize=7, frameon=False)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, metadata={"Software": None} if _is_png(out) else None)


_SPLITS = ("train", "valid")


def _draw(axes: Any, run: RunCurves, metric: str, name: str, colour: str, smooth: int) -> None:
    for split in _SPLITS:
        steps, values = run.curves.get((split, metric), ([], []))
        if not steps:
            continue
        if split == "train":
            xs, ys = smoothed(steps, values, smooth)
            axes.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.7, label=f"{name}, train")
        else:
            style = {"marker": "o", "markersize": 3, "linewidth": 1.6}
            axes.plot(steps, values, color=colour, label=f"{name}, valid", **style)
    if metric in run.chance:
        level = run.chance[metric]
        axes.axhline(level, color=colour, linestyle="--", linewidth=0.9, alpha=0.8)
        axes.annotate(
            f"chance {level:.3g}",
            (0.99, level),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
            color=colour,
        )


def smoothed(
    steps: Sequence[int], values: Sequence[float], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Running mean over `width` neighbouring points; ends use the neighbours there are."""
    y = np.asarray(values, dtype=np.float64)
    width = min(width, len(y))
    if width > 1:
        kernel = np.ones(width)
        y = np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")
    return np.asarray(steps), y


def _points(line: str) -> list[tuple[str, int, str, float]]:
    """(split, step, metric, value) of every finite number of a line."""
    try:
        row = json.loads(line)
        split, step = str(row["split"]), int(row["step"])
    except (ValueError, KeyError, TypeError):
        return []
    return [
        (split, step, name, float(value))
        for name, value in row.items()
        if name not in ("step", "time")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ]


def _chance(run: Path) -> dict[str, float]:
    """The chance levels that training noted beside the metrics; none where there is no note."""
    try:
        levels = json.loads((run / "run.json").read_text(encoding="utf-8"))["chance"]
        return {name: float(level) for name, level in levels.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _short_names(runs: Sequence[str]) -> list[str]:
    """The last parts of the paths that tell the runs apart."""
    parts = [Path(run).resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return list(runs)


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _is_png(out: str | Path) -> bool:
    return Path(out).suffix.lower() == ".png"
