"""`speechssl report`: learning curves of one or several runs as one picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """The options of this verb."""
    p = argparse.ArgumentParser(
        prog="speechssl report",
        description="Plot loss, accuracy, error rates and code use over updates, with chance "
        "levels, from the metrics.jsonl of each run.",
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    p.add_argument("--out", default="curves.png", help="picture to write (%(default)s)")
    p.add_argument("--labels", nargs="+", default=None, help="names of the runs in the legend")
    p.add_argument("--smooth", type=int, default=1, help="training points averaged (%(default)s)")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    args = parser().parse_args(argv)
    if args.smooth < 1:
        parser().error(f"--smooth is {args.smooth}, expected at least 1")
    if args.labels and len(args.labels) != len(args.runs):
        parser().error(f"got {len(args.labels)} --labels for {len(args.runs)} runs")
    from speechssl.report.curves import plot_curves

    plot_curves(args.runs, args.out, labels=args.labels, smooth=args.smooth)
    print(args.out)
    return 0
