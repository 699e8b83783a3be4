"""Settings before they are typed: a dotted key, its raw value, and the place it was written.

Files are read with line numbers, so that every complaint can point at the line to change.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from speechssl.errors import ConfigError

COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Setting:
    """A raw value and where it was written: `conf/base.yaml:12` or `command line`."""

    value: Any
    source: str

    @property
    def typed_in(self) -> bool:
        """Whether the value is text from the command line, to be read by its type."""
        return self.source == COMMAND_LINE


def read_yaml(path: str | Path) -> dict[str, Setting]:
    """Dotted key -> setting of one YAML file.

    Raises ConfigError when the file is missing, is not YAML, or gives a key twice.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--config {path}: cannot read it: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from error
    found: dict[str, Setting] = {}
    if node is None:
        return found
    builder = yaml.SafeLoader("")

    def walk(node: Any, prefix: str) -> None:
        for key_node, value_node in node.value:
            where = f"{path}:{key_node.start_mark.line + 1}"
            key = f"{prefix}{key_node.value}"
            if isinstance(value_node, yaml.MappingNode):
                walk(value_node, f"{key}.")
                continue
            if key in found:
                raise ConfigError(
                    f"{where}: '{key}' is given twice, first at {found[key].source}; keep one"
                )
            try:
                value = builder.construct_object(value_node, deep=True)
            except (yaml.YAMLError, ValueError) as error:
                raise ConfigError(f"{where}: '{key}' cannot be read: {error}") from error
            if not (value is None and not prefix):  # `data:` with nothing below says nothing
                found[key] = Setting(value, where)

    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected sections like 'optim: {{lr: 5.0e-4}}' at top level")
    walk(node, "")
    return found


def read_arguments(argv: Sequence[str]) -> tuple[list[str], dict[str, Setting]]:
    """The `--config` files and the `--section.key VALUE` settings of a command line.

    Raises ConfigError for anything else, and for an option without a value.
    """
    files: list[str] = []
    found: dict[str, Setting] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or len(name) < 3:
            raise ConfigError(f"'{word}' is no option; settings are written --section.key VALUE")
        if name != "--config" and "." not in name:
            raise ConfigError(
                f"unknown option '{name}'; expected --config FILE or --section.key VALUE"
            )
        if not equals:
            follower = next(words, None)
            if follower is None or (follower.startswith("--") and len(follower) > 2):
                raise ConfigError(f"{name} expects a value: {name} VALUE")
            value = follower
        if name == "--config":
            files.append(value)
        else:
            found[name.removeprefix("--")] = Setting(value, COMMAND_LINE)
    return files, found


def key_of(field_name: str) -> str:
    """The name a field has in files: `from_` is written `from`."""
    return field_name.removesuffix("_")


def leaves(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every setting of a dataclass, nested ones included."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in fields(cls):
        key = f"{prefix}{key_of(field.name)}"
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            found |= leaves(hint, f"{key}.")
        else:
            found[key] = hint
    return found


def reject_unknown(settings: Mapping[str, Setting], known: Iterable[str]) -> None:
    """Raise ConfigError for the first setting whose key is not in `known`, with the nearest one."""
    known = list(known)
    for key, setting in settings.items():
        if key in known:
            continue
        deeper = [k for k in known if k.startswith(f"{key}.")]
        if deeper:
            raise ConfigError(
                f"{setting.source}: '{key}' is a section, got {setting.value!r}; "
                f"set its keys, for example '{deeper[0]}'"
            )
        section, _, name = key.rpartition(".")
        sections = list(dict.fromkeys(k.partition(".")[0] for k in known))
        inside = [k for k in known if k.rpartition(".")[0] == section]
        elsewhere = [k for k in known if k.rpartition(".")[2] == name]
        # Without the section, which all of them share and which would make any two alike.
        part = key.partition(".")[2]
        siblings = {k.partition(".")[2]: k for k in known if k.startswith(key[: -len(part)])}
        near = [siblings[n] for n in get_close_matches(part, siblings, n=1, cutoff=0.7)]
        near = near or elsewhere[:1] or get_close_matches(key, known, n=1, cutoff=0.75)
        if near:
            hint = f"did you mean '{near[0]}'?"
        elif inside:
            hint = f"keys of '{section}': {', '.join(k.rpartition('.')[2] for k in inside)}"
        else:
            hint = f"sections: {', '.join(sections)}"
        raise ConfigError(f"{setting.source}: unknown key '{key}'; {hint}")


def typed(key: str, hint: Any, setting: Setting) -> Any:
    """The value as its field's type: a tuple for a YAML list or a single item, a float for `5e-4`.

    Numbers of a tuple are typed in as `5,20` or `[5, 20]`.
    Raises ConfigError naming the place, the value and the type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    def refuse() -> ConfigError:
        got = f"{setting.value!r} ({type(setting.value).__name__})"
        return ConfigError(f"{setting.source}: {key}: got {got}, expected {describe_type(hint)}")

    allows_none = hint is None or type(None) in typing.get_args(hint)
    if setting.value is None and not allows_none:
        raise refuse()
    parser = ArgumentParser(exit_on_error=False)
    raw = setting.value
    inner = typing.get_args(hint)
    listed = typing.get_origin(hint) is tuple
    numbers = listed and set(inner) <= {int, float, Ellipsis}
    if setting.typed_in and numbers and "," in (text := str(raw)) and text[0] != "[":
        raw = f"[{text}]"
    many = listed and len(inner) == 2 and inner[1] is Ellipsis
    one_for_many = many and not (
        isinstance(raw, list | tuple) or (setting.typed_in and str(raw).startswith("["))
    )
    parser.add_argument("--value", type=inner[0] if one_for_many else hint)
    try:
        if setting.typed_in:
            value = parser.parse_args([f"--value={raw}"]).value
        else:
            value = parser.parse_object({"value": raw}).value
    except ArgumentError as error:
        raise refuse() from error
    if isinstance(value, float) and math.isnan(value):
        raise refuse()
    return (value,) if one_for_many else value


def describe_type(hint: Any) -> str:
    """A type in the words of an error message or a help line."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe_type(one) for one in inner)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        return f"a list of {describe_type(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}: {', '.join(describe_type(one) for one in inner)}"
    return getattr(hint, "__name__", str(hint))


def build(cls: type, section: str, settings: Mapping[str, Setting], base: Any = None) -> Any:
    """An instance of dataclass `cls`: `base` or the defaults, and the settings below `section`.

    Raises ConfigError for a wrong type, a missing required key, or what `__post_init__` refuses.
    """
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in fields(cls):
        key, hint = f"{section}.{key_of(field.name)}", hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            if any(name.startswith(f"{key}.") for name in settings):
                inner = getattr(base, field.name, None)
                if inner is None and isinstance(field.default, hint):
                    inner = field.default
                values[field.name] = build(hint, key, settings, inner)
        elif key in settings:
            values[field.name] = typed(key, hint, settings[key])
    for field in fields(cls):
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if base is None and not optional and field.name not in values:
            key = f"{section}.{key_of(field.name)}"
            raise ConfigError(
                f"{key} is not set; give --{key} VALUE or write it in a --config file"
            )
    try:
        return cls(**values) if base is None else replace(base, **values)
    except ValueError as error:
        raise ConfigError(f"{section}: {error}") from error
