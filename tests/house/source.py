"""What house tests read: the files of the library, and the imports of each."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted((ROOT / "speechssl").rglob("*.py"))
SCRIPTS = sorted((ROOT / "data_prep").rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One imported module: where it stands, and whether inside a function."""

    module: str
    line: int
    lazy: bool


@cache
def tree(file):
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


@cache
def imports(file):
    """Imports of a file, except those for the type checker alone."""
    found = []

    def visit(node, lazy):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            is_package = (ROOT / (node.module or "").replace(".", "/")).is_dir()
            modules = names if is_package else [node.module]
            found.extend(Import(module, node.lineno, lazy) for module in modules)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy or inside)

    visit(tree(file), False)
    return tuple(found)


def module_of(file):
    """`speechssl/audio/io.py` -> `speechssl.audio.io`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def place(file, line=None):
    """Path from the root, with a line."""
    return f"{file.relative_to(ROOT)}" + (f":{line}" if line else "")
