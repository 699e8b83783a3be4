"""What was left out and why: bad input is counted, listed and limited, never dropped silently."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from speechssl.atomic import write_text
from speechssl.errors import DataError

_EXAMPLES_PER_KIND = 3


class Skip(NamedTuple):
    """One thing left out: a one-word kind, the file or line, and the full message."""

    kind: str
    where: str
    message: str


class Skips:
    """A growing list of things left out, with counts by kind."""

    def __init__(self) -> None:
        self.items: list[Skip] = []
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, where: str, message: str) -> None:
        """Record one."""
        self.items.append(Skip(kind, str(where), message))
        self.counts[kind] += 1

    def extend(self, other: Skips) -> None:
        """Record everything `other` holds."""
        for item in other:
            self.add(*item)

    @property
    def total(self) -> int:
        """How many were left out."""
        return len(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Skip]:
        return iter(self.items)

    def check(
        self, num_seen: int, max_fraction: float = 0.05, max_count: int | None = None
    ) -> None:
        """Raise DataError when more was left out than is plausible for sound data.

        `num_seen` counts all that was looked at, kept or not. Nothing kept at all is always an
        error.
        """
        too_many = self.total > max_fraction * num_seen
        if max_count is not None:
            too_many = too_many or self.total > max_count
        if self.total and (too_many or self.total >= num_seen):
            limit = f"{100 * max_fraction:g}%" + ("" if max_count is None else f" or {max_count}")
            raise DataError(
                f"{self.total} of {num_seen} entries cannot be used, expected at most {limit}; "
                "repair them, or raise the limit:\n" + "\n".join(self.lines())
            )

    def lines(self) -> list[str]:
        """A report: per kind, most frequent first, the count and a few examples."""
        report = []
        for kind, count in sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0])):
            report.append(f"{kind}: {count}")
            examples = [item for item in self.items if item.kind == kind]
            report += [f"  {item.message}" for item in examples[:_EXAMPLES_PER_KIND]]
            if count > _EXAMPLES_PER_KIND:
                report.append(f"  ... and {count - _EXAMPLES_PER_KIND} more")
        return report

    def write_json(self, path: str | Path) -> None:
        """Write counts and every item, atomically."""
        content = {
            "total": self.total,
            "counts": dict(sorted(self.counts.items())),
            "items": [item._asdict() for item in self.items],
        }
        write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
