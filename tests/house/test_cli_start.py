"""The command line answers at once: help needs no torch and less than a second."""

import resource
import subprocess
import sys

import pytest

from tests.house.source import ROOT

VERBS = ("manifest", "train", "extract", "evaluate", "probe", "predict", "show", "report")


def run(*words):
    """Finished process and the CPU seconds it took (wall time would measure the neighbours)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, seconds


@pytest.mark.parametrize(
    "words", [(), *((verb,) for verb in VERBS)], ids=lambda w: w[0] if w else ""
)
def test_help_takes_less_than_a_second(words):
    done, seconds = run("-m", "speechssl", *words, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert seconds < 1.0


def test_help_names_every_verb():
    done, _ = run("-m", "speechssl", "--help")
    assert [verb for verb in VERBS if verb not in done.stdout] == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_no_torch(verb):
    code = (
        "import sys\nfrom speechssl.cli.main import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done, _ = run("-c", code)
    assert done.returncode == 0, done.stderr or "torch was imported"


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["trian"], 2, "train"),
        (["train", "--optim.lrr", "1"], 2, "optim.lr"),
        (["manifest", "no-such-folder", "out.jsonl"], 3, "no-such-folder"),
    ],
)
def test_exit_codes_and_nearest_names(words, code, hint):
    done, _ = run("-m", "speechssl", *words)
    assert done.returncode == code, done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
