"""Habits that a reader relies on, checked in the source itself."""

import ast
import re

import pytest

from speechssl import lookup
from tests.house.source import LIBRARY, ROOT, SCRIPTS, place, tree

SHIPPED = [*LIBRARY, *SCRIPTS]
#: Calls that run code out of data, or text through a shell.
FORBIDDEN_CALLS = {
    "eval": "parse the text", "exec": "parse the text", "yaml.load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load", "os.system": "use subprocess.run([...])",
    "pickle.load": "use safetensors or JSON", "pickle.loads": "use safetensors or JSON",
    "joblib.load": "use safetensors or JSON",
}  # fmt: skip
FORBIDDEN_ARGUMENTS = {
    ("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True),
}  # fmt: skip
SHAPELESS_NAMES = {"utils", "common", "misc", "helpers"}


def calls(file):
    return [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", SHIPPED, ids=place)
def test_nothing_runs_code_out_of_data(file):
    for call in calls(file):
        name = ast.unparse(call.func)
        assert name not in FORBIDDEN_CALLS, (
            f"{place(file, call.lineno)}: {name}: {FORBIDDEN_CALLS[name]}"
        )
        for keyword in call.keywords:
            if isinstance(keyword.value, ast.Constant):
                setting = (keyword.arg, keyword.value.value)
                assert setting not in FORBIDDEN_ARGUMENTS, f"{place(file, call.lineno)}: {setting}"


def test_torch_load_stands_in_at_most_one_function_and_trusts_nobody():
    found = [(f, c) for f in SHIPPED for c in calls(f) if ast.unparse(c.func) == "torch.load"]
    assert len({file for file, _ in found}) <= 1, [place(f, c.lineno) for f, c in found]
    for file, call in found:
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert given.get("weights_only") == "True", place(file, call.lineno)
    owners = {
        function.name
        for file in {file for file, _ in found}
        for function in ast.walk(tree(file))
        if isinstance(function, ast.FunctionDef)
        and any(call in set(ast.walk(function)) for _, call in found)
    }
    assert len(owners) <= 1, owners


@pytest.mark.parametrize("file", LIBRARY, ids=place)
def test_the_library_prints_nothing(file):
    if file.parent.name == "cli":
        return
    for call in calls(file):
        assert ast.unparse(call.func) != "print", f"{place(file, call.lineno)}: use logging"


def objectives():
    """Classes of every file of the folders of objectives that are derived from Objective."""
    files = {
        f for room in ("objectives", "downstream") for f in (ROOT / "speechssl" / room).glob("*.py")
    }
    classes = {f: [n for n in tree(f).body if isinstance(n, ast.ClassDef)] for f in sorted(files)}
    bases = {c.name: set(map(ast.unparse, c.bases)) for found in classes.values() for c in found}
    derived, before = {"Objective"}, 0
    while before < len(derived):
        before = len(derived)
        derived |= {name for name, above in bases.items() if above & derived}
    return {f: [c for c in found if bases[c.name] & derived] for f, found in classes.items()}


def test_one_objective_a_file_with_its_source():
    found = objectives()
    assert {file.stem for file, own in found.items() if own} == set(lookup.names())
    for file, own in found.items():
        assert len(own) <= 1, f"{place(file)} defines {[c.name for c in own]}"
        for objective in own:
            text = (ast.get_docstring(tree(file)) or "") + (ast.get_docstring(objective) or "")
            assert re.search(r"\b\d{4}\.\d{5}\b|\b(19|20)\d\d\b", text), (
                f"{place(file, objective.lineno)}: the docstring names no source (arXiv or year)"
            )


@pytest.mark.parametrize("file", SHIPPED, ids=place)
def test_public_things_have_docstrings(file):
    def check(node, prefix=""):
        for child in node.body:
            if not isinstance(child, ast.FunctionDef | ast.ClassDef):
                continue
            if child.name.startswith("_") or "overload" in map(ast.unparse, child.decorator_list):
                continue
            name = f"{prefix}{child.name}"
            # Config classes are described by their fields' comments where a line would only repeat.
            assert ast.get_docstring(child), f"{place(file, child.lineno)}: {name} has no docstring"
            if isinstance(child, ast.ClassDef):
                check(child, f"{name}.")

    check(tree(file))


@pytest.mark.parametrize("file", SHIPPED, ids=place)
def test_modules_say_what_they_are_for(file):
    assert file.stem not in SHAPELESS_NAMES, f"{place(file)}: a name that says nothing"
    empty = not file.read_text(encoding="utf-8").strip()
    assert (file.stem == "__init__" and empty) or ast.get_docstring(tree(file)), place(file)


def test_recipes_hold_no_python():
    recipes = ROOT / "recipes"
    assert not list(recipes.rglob("*.py"))
    for script in recipes.rglob("run.sh"):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"\bpython3?\s+(-\s|-c\b|<<)", text), place(script)


def test_the_library_knows_no_corpus():
    corpora = re.compile(r"librispeech|so762|speechocean|fsdd|voxceleb|timit", re.IGNORECASE)
    for file in LIBRARY:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                continue  # docstrings may cite; what counts is the names of the code
            name = getattr(node, "id", None) or getattr(node, "name", None)
            assert not (isinstance(name, str) and corpora.search(name)), place(file, node.lineno)
