"""Counting what is left out."""

import json
from pathlib import Path

import pytest

from speechssl.data.skips import Skips
from speechssl.errors import DataError


def some() -> Skips:
    skips = Skips()
    for number in range(5):
        skips.add("empty", f"{number}.wav", f"{number}.wav: empty")
    skips.add("missing", "x.wav", "x.wav: no such file")
    return skips


def test_counts_and_report() -> None:
    skips = some()
    assert skips.total == len(skips) == 6
    assert skips.counts == {"empty": 5, "missing": 1}
    lines = skips.lines()
    assert lines[0] == "empty: 5"
    assert "  ... and 2 more" in lines
    assert lines[-1] == "  x.wav: no such file"
    other = Skips()
    other.extend(skips)
    assert other.items == skips.items


@pytest.mark.parametrize(("seen", "fraction", "count"), [(119, 0.05, None), (10_000, 0.05, 5)])
def test_check_raises_with_the_reasons(seen: int, fraction: float, count: int | None) -> None:
    with pytest.raises(DataError, match=f"6 of {seen}.*\n(.*\n)*.*no such file"):
        some().check(seen, fraction, count)


def test_check_passes_below_the_limit_but_never_with_nothing_left() -> None:
    some().check(120, 0.05)
    Skips().check(0)
    with pytest.raises(DataError):
        some().check(6, 1.0)


def test_json(tmp_path: Path) -> None:
    some().write_json(tmp_path / "skips.json")
    content = json.loads((tmp_path / "skips.json").read_text())
    assert content["counts"] == {"empty": 5, "missing": 1}
    assert content["items"][0] == {"kind": "empty", "where": "0.wav", "message": "0.wav: empty"}
