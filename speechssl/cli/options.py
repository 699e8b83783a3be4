"""Help for settings, read from the dataclasses themselves: name, type, default, comment."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from speechssl.settings import describe_type, key_of


def section_help(cls: type, section: str) -> str:
    """One paragraph of help for a section: `--section.key TYPE  default  what it is`."""
    rows = _rows(cls, section)
    name_width = min(max((len(name) for name, *_ in rows), default=0), 34)
    lines = [f"{section}:"]
    for name, kind, default, comment in rows:
        tail = f"{default}  {comment}".rstrip()
        lines.append(f"  {name:<{name_width}}  {kind:<12}  {tail}")
    return "\n".join(lines)


def _rows(cls: type, section: str) -> list[tuple[str, str, str, str]]:
    hints, comments = typing.get_type_hints(cls), field_comments(cls)
    rows = []
    for field in fields(cls):
        name, hint = f"{section}.{key_of(field.name)}", hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            rows += _rows(hint, name)
            continue
        default: Any = field.default
        if default is MISSING:
            default = None if field.default_factory is MISSING else field.default_factory()
            shown = "(required)" if field.default_factory is MISSING else f"[{default}]"
        else:
            listed = isinstance(default, tuple)
            shown = f"[{', '.join(map(str, default)) if listed else default}]"
        rows.append((f"--{name}", describe_type(hint), shown, comments.get(field.name, "")))
    return rows


def field_comments(cls: type) -> dict[str, str]:
    """Field -> the comment at the end of its line, or the comment lines just above it."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    comments = {
        token.start[0]: (token.string.lstrip("#: ").strip(), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, str] = {}
    body = ast.parse(source).body[0]
    for node in getattr(body, "body", []):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        text, _ = comments.get(node.end_lineno or node.lineno, ("", False))
        if not text:
            above: list[str] = []
            line = node.lineno - 1
            while line in comments and comments[line][1]:
                above.insert(0, comments[line][0])
                line -= 1
            text = " ".join(above)
        if text:
            found[node.target.id] = text
    return found


def docstring_line(module: str) -> str:
    """The first line of a module's docstring, without importing it."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
