"""From a name in a config to a class: the folder is the registry.

`wav2vec2` means the single subclass defined in `speechssl/objectives/wav2vec2.py`;
`my_package.my_module:MyObjective` means a class of yours. Only the named file is imported, so one
broken file cannot break the rest.
"""

from __future__ import annotations

import importlib
import inspect
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from speechssl.errors import ConfigError

T = TypeVar("T")
_CLASS = re.compile(r"^class (\w+)\((\w+)\):", re.MULTILINE)
OBJECTIVE_PACKAGES = ("speechssl.objectives", "speechssl.downstream")


def names(packages: tuple[str, ...] = OBJECTIVE_PACKAGES) -> dict[str, str]:
    """Name -> module of every file that defines an Objective, without importing any."""
    classes: list[tuple[str, str, str]] = []  # module, class, its base
    root = Path(__file__).parent
    for package in packages:
        folder = root.joinpath(*package.split(".")[1:])
        for file in sorted(folder.glob("*.py")):
            text = file.read_text(encoding="utf-8")
            classes += [(f"{package}.{file.stem}", *found) for found in _CLASS.findall(text)]
    objectives, known = {"Objective"}, 0
    while known < len(objectives):  # an objective may be derived from that of another file
        known = len(objectives)
        objectives |= {name for _, name, base in classes if base in objectives}
    modules = [module for module, _, base in classes if base in objectives]
    return {module.rpartition(".")[2]: module for module in modules}


def find(name: str, base: type[T], packages: tuple[str, ...] = OBJECTIVE_PACKAGES) -> type[T]:
    """The subclass of `base` that `name` stands for.

    Raises ConfigError with the nearest valid name, or when the file has not exactly one subclass.
    """
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"objective.name: cannot import '{name}': {error}") from error
        if not (inspect.isclass(found) and issubclass(found, base)):
            raise ConfigError(f"objective.name: '{name}' is not a subclass of {base.__name__}")
        return found
    known = names(packages)
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"objective.name: got '{name}', expected one of {', '.join(known)} "
            f"or 'package.module:Class'{hint}"
        )
    module = importlib.import_module(known[name])
    own = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise ConfigError(
            f"{module.__name__} defines {len(own)} {base.__name__} classes, expected 1"
        )
    return own[0]
