"""The README says what is there: its tree, its files, its commands, its example."""

import re
import subprocess
import sys

import pytest

from tests.house.source import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
#: Folders at the top that are no part of the house.
NOT_IN_THE_TREE = {"exp", "runs", "build", "dist", "node_modules"}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def packages(folder):
    return {d.name for d in folder.iterdir() if d.is_dir() and any(d.glob("*.*"))} - {"__pycache__"}


def test_tree_matches_the_disk():
    lines = blocks("text")[0].splitlines()
    top = {line.split("/")[0] for line in lines if not line.startswith(" ")}
    inside = {line.split("/")[0].strip() for line in lines if line.startswith("  ")}
    on_disk = {
        d.name
        for d in ROOT.iterdir()
        if d.is_dir() and not d.name.startswith((".", "__")) and any(d.iterdir())
    }
    assert top == {n for n in on_disk if n not in NOT_IN_THE_TREE and not n.endswith(".egg-info")}
    has_code = {
        name
        for name in packages(ROOT / "speechssl")
        if any(f.stem != "__init__" for f in (ROOT / "speechssl" / name).rglob("*.py"))
    }
    assert inside == has_code
    unexplained = [line for line in lines if not re.search(r"/\s+\S", line)]
    assert unexplained == ["speechssl/"]


def test_links_and_named_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for named in re.findall(r"\b(?:recipes|tests|speechssl)/[\w/]+\.(?:sh|py|yaml|md)\b", README):
        assert (ROOT / named).exists(), named


def test_every_recipe_is_in_the_table():
    recipes = {file.parent.name for file in (ROOT / "recipes").glob("*/run.sh")}
    assert recipes == set(re.findall(r"^\| \[(\w+)\]\(recipes/", README, flags=re.MULTILINE))


def test_commands_name_verbs_that_exist():
    from speechssl.cli.main import VERBS

    used = set()
    for block in blocks("bash"):
        used |= set(re.findall(r"^speechssl (\w+)", block, flags=re.MULTILINE))
        used |= set(re.findall(r"(?:-m|--module) speechssl (\w+)", block))
    assert used <= set(VERBS)
    assert {"manifest", "train", "evaluate", "predict", "extract", "show"} <= used


def test_python_example_runs_and_prints_what_it_says(tmp_path):
    torch = pytest.importorskip("torch")
    from speechssl.downstream.ctc import CTC
    from speechssl.models.backbone import Backbone
    from speechssl.models.bundle import save_bundle
    from speechssl.models.presets import preset

    torch.manual_seed(1)
    classes = ("<pad>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'")
    model = CTC(Backbone(preset("filterbank-tiny")), CTC.Config(), classes)
    save_bundle(tmp_path / "exp/mini/asr/model", model, card={})
    [example] = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    promised = re.findall(r"print\(.*\)  # (?:seconds: )?(\(.*?\)|\[.*?\])", example)
    assert printed[: len(promised)] == promised
