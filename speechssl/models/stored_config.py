"""Settings inside a model folder: frozen dataclasses to plain JSON values and back, strictly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from speechssl.errors import CheckpointError, ConfigError
from speechssl.settings import Setting, build, key_of, leaves, reject_unknown

T = TypeVar("T")


def to_json(config: Any) -> dict[str, Any]:
    """The fields of a dataclass, nested ones included, as JSON values under their file names."""
    return {key_of(f.name): _plain(getattr(config, f.name)) for f in fields(config)}


def from_json(cls: type[T], values: Any, section: str, source: str) -> T:
    """The dataclass `cls` from the stored `values`; absent fields keep their defaults.

    `section` is the place inside the file `source`, for messages.
    Raises CheckpointError for unknown keys, wrong types and values the class refuses.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(
            f"{source}: '{section}' is {type(values).__name__}, expected a table of settings"
        )
    known = leaves(cls, f"{section}.")
    settings = dict(_flat(values, f"{section}.", known, source))
    try:
        reject_unknown(settings, known)
        return build(cls, section, settings)
    except (ConfigError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"{error} (stored in {source}; the folder was edited or written by other code)"
        ) from error


def _flat(
    values: Mapping[str, Any], prefix: str, known: Mapping[str, Any], source: str
) -> Iterator[tuple[str, Setting]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in known:
            yield from _flat(value, f"{key}.", known, source)
        else:
            yield key, Setting(value, source)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
