"""Settings: where they were written, what they are typed as, and how complaints read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from speechssl.errors import ConfigError
from speechssl.settings import (
    COMMAND_LINE,
    Setting,
    build,
    leaves,
    read_arguments,
    read_yaml,
    reject_unknown,
)


@dataclass(frozen=True)
class Span:
    prob: float = 0.065
    length: int = 10


@dataclass(frozen=True)
class Part:
    out: str
    mask: Span = Span(length=7)
    lr: float = 5e-4
    steps: int = 100
    dims: tuple[int, ...] = (1, 2)
    betas: tuple[float, float] = (0.9, 0.98)
    kind: Literal["plain", "deepspeed"] = "plain"
    on: bool = True
    name: str | None = None
    from_: str = ""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1")


def write(folder: Path, text: str) -> str:
    path = folder / "a.yaml"
    path.write_text(text)
    return str(path)


def typed(value: object, source: str = "a.yaml:1", **keys: object) -> dict[str, Setting]:
    return {"part.out": Setting("x", source)} | {
        f"part.{k}": Setting(v, source) for k, v in keys.items()
    }


def test_yaml_keeps_the_line_of_every_key(tmp_path: Path):
    path = write(tmp_path, "part:\n  lr: 5e-4\n  mask: {prob: 0.1}\n\nempty:\n")
    assert read_yaml(path) == {
        "part.lr": Setting("5e-4", f"{path}:2"),
        "part.mask.prob": Setting(0.1, f"{path}:3"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: {lr: 1}\npart: {lr: 2}\n", r"a\.yaml:2: 'part.lr' is given twice, first at .*:1"),
        ("part: [1\n", "not valid YAML"),
        ("- 1\n", "expected sections"),
        ("part: {lr: !!python/object/apply:os.system ['true']}\n", "cannot be read"),
    ],
)
def test_bad_yaml_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(tmp_path, text))


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read it: No such file"):
        read_yaml("nowhere.yaml")


def test_arguments_split_into_files_and_settings():
    files, settings = read_arguments(
        ["--config", "a.yaml", "--optim.lr=-1", "--config=b.yaml", "--run.out", "x=y"]
    )
    assert files == ["a.yaml", "b.yaml"]
    assert settings == {
        "optim.lr": Setting("-1", COMMAND_LINE),
        "run.out": Setting("x=y", COMMAND_LINE),
    }


@pytest.mark.parametrize(
    "argv", [["--optim.lr"], ["--optim.lr", "--run.out", "x"], ["lr=3"], ["--lr", "3"], ["-h"]]
)
def test_malformed_arguments_are_refused(argv: list[str]):
    with pytest.raises(ConfigError):
        read_arguments(argv)


def test_values_take_the_type_of_their_field():
    part = build(
        Part,
        "part",
        typed(
            0, lr="5e-5", dims=[3, 4], betas=[1, 0.5], kind="deepspeed", name=None, **{"from": "m"}
        ),
    )
    assert part.lr == 5e-5
    assert part.dims == (3, 4)
    assert part.betas == (1.0, 0.5)
    assert part.name is None
    assert part.from_ == "m"


def test_command_line_text_is_read_by_type():
    part = build(Part, "part", typed(0, COMMAND_LINE, dims="[3,4]", on="false", name="7", lr="-1"))
    assert (part.dims, part.on, part.name, part.lr) == ((3, 4), False, "7", -1.0)


def test_numbers_of_a_list_need_no_brackets_on_the_command_line():
    part = build(Part, "part", typed(0, COMMAND_LINE, dims="3,4,5", betas="0.5,1"))
    assert (part.dims, part.betas) == ((3, 4, 5), (0.5, 1.0))
    with pytest.raises(ConfigError, match=r"betas: got '0.5,1,2' \(str\), expected a list of 2"):
        build(Part, "part", typed(0, COMMAND_LINE, betas="0.5,1,2"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", "fast", r"a\.yaml:1: part\.lr: got 'fast' \(str\), expected float"),
        ("lr", None, "got None"),
        ("lr", float("nan"), "got nan"),
        ("steps", 1.5, "expected int"),
        ("steps", True, "expected int"),
        ("dims", [1, "b"], "expected a list of int"),
        ("betas", [0.9], "expected a list of 2: float, float"),
        ("kind", "plane", "expected 'plain' or 'deepspeed'"),
        ("steps", 0, "part: steps is 0"),
    ],
)
def test_wrong_values_name_place_value_and_type(key: str, value: object, message: str):
    with pytest.raises(ConfigError, match=message):
        build(Part, "part", typed(0, **{key: value}))


def test_nested_settings_keep_the_outer_default():
    part = build(Part, "part", typed(0, **{"mask.prob": 0.5}))
    assert part.mask == Span(prob=0.5, length=7)


def test_required_setting_is_asked_for():
    with pytest.raises(ConfigError, match=r"part\.out is not set; give --part\.out VALUE"):
        build(Part, "part", {})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("part.lrr", "'part.lr'"),
        ("other.betas", "'part.betas'"),
        ("parts.kind", "'part.kind'"),
        ("part.mask.probb", "'part.mask.prob'"),
        ("part.mask", "is a section"),
        ("part.zzzzzz", "keys of 'part': out"),
        ("zzzzzz", "sections: part"),
    ],
)
def test_unknown_keys_get_the_nearest_name(key: str, nearest: str):
    with pytest.raises(ConfigError, match=nearest) as caught:
        reject_unknown({key: Setting(1, "conf/a.yaml:7")}, leaves(Part, "part."))
    assert "conf/a.yaml:7" in str(caught.value)


def test_a_single_value_stands_for_a_list_of_one():
    assert build(Part, "part", typed(0, dims=3)).dims == (3,)
    assert build(Part, "part", typed(0, COMMAND_LINE, dims="3")).dims == (3,)
