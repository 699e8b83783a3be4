"""Help read from dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from speechssl.cli.options import docstring_line, field_comments, section_help
from speechssl.cli.train import help_text


@dataclass(frozen=True)
class Inner:
    prob: float = 0.5  # share of hidden frames


@dataclass(frozen=True)
class Outer:
    out: str  # where to
    #: a line above,
    #: and another
    dims: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    from_: str = ""


def test_comments_are_found_beside_and_above():
    assert field_comments(Outer) == {"out": "where to", "dims": "a line above, and another"}


def test_section_help_lists_nested_settings_under_their_file_names():
    lines = [" ".join(line.split()) for line in section_help(Outer, "part").splitlines()]
    assert lines == [
        "part:",
        "--part.out str (required) where to",
        "--part.dims a list of int [1, 2] a line above, and another",
        "--part.inner.prob float [0.5] share of hidden frames",
        "--part.from str []",
    ]


def test_objectives_are_listed_without_importing_them():
    text = help_text([])
    assert "wav2vec2" in text
    assert "--objective.num_negatives" not in text
    assert docstring_line("speechssl.types").startswith("The vocabulary page")


def test_a_named_objective_shows_its_settings():
    assert "--objective.num_negatives" in help_text(["--objective.name", "wav2vec2"])
