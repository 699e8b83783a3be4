"""Recipes from the outside: help, options, stages that are skipped, repeated and that fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(file.parent.name for file in (ROOT / "recipes").glob("*/run.sh"))
SCRIPTS = [*(ROOT / "recipes").rglob("*.sh"), ROOT / "tests/run.sh", ROOT / ".ci/run"]


def bash(*words, cwd=ROOT, timeout=60, **env):
    return subprocess.run(
        ["bash", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"SPEECHSSL_VENV": sys.prefix} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda f: str(f.relative_to(ROOT)))
def test_script_parses(script):
    done = bash("-n", script)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_is_silent():
    done = subprocess.run(
        ["shellcheck", "-x", "-s", "bash", "-S", "warning", *map(str, SCRIPTS)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == ""


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_tells_what_it_does_and_every_option(recipe):
    done = bash(f"recipes/{recipe}/run.sh", "--help", SPEECHSSL_VENV="/nowhere")
    assert done.returncode == 0, done.stderr
    for option in ("--stage", "--stop-stage", "--nproc", "--smoke", "--data", "--out", "--help"):
        assert option in done.stdout
    script = (ROOT / "recipes" / recipe / "run.sh").read_text(encoding="utf-8")
    assert ("--jobs" in done.stdout) == ("at_once " in script)
    assert len(done.stdout.splitlines()[0]) > 20


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--stages", "1"], "unknown option '--stages'"),
        (["--stage", "two"], "expects a number"),
        (["--nproc=0"], "at least 1"),
        (["--jobs", "2"], "nothing to run at once"),
        (["--out"], "expects a value"),
    ],
)
def test_wrong_options_are_usage_errors(words, complaint):
    done = bash("recipes/mini/run.sh", *words)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_no_job_at_a_time_is_a_usage_error():
    done = bash("recipes/so762/run.sh", "--jobs", "0")
    assert done.returncode == 2
    assert "at least 1" in done.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_configs_and_a_readme(recipe):
    folder = ROOT / "recipes" / recipe
    assert list(folder.glob("conf/*.yaml"))
    assert f"bash recipes/{recipe}/run.sh" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def toy(tmp_path):
    """A recipe of three stages that writes what it ran; `fail` makes the second one fail."""
    shutil.copytree(ROOT / "recipes/_lib", tmp_path / "recipes/_lib")
    folder = tmp_path / "recipes/toy"
    (folder / "conf").mkdir(parents=True)
    (folder / "conf/a.yaml").write_text("optim: {lr: 1}\n")
    (folder / "run.sh").write_text(
        "#!/usr/bin/env bash\n"
        "# A toy.\n"
        "set -euo pipefail\n"
        "recipe=recipes/toy\n"
        "source recipes/_lib/stages.sh\n"
        'parse_options "$@"\n'
        'first() { echo first >>"$out/ran"; }\n'
        # Training, as far as stages can tell: a line a start, in folders named by --run.out.
        'speechssl() { mkdir -p "$3"; echo start >>"$3/starts"; if [[ -f fail-$(basename "$3") ]]; '
        "then false; fi; }\n"
        'second() { train --run.out "$out/one"; train --run.out "$out/two"; if [[ -f fail ]]; '
        'then false; fi; echo second >>"$out/ran"; }\n'
        'third() { train --run.out "$out/after"; echo "third smoke=$smoke" >>"$out/ran"; }\n'
        "run_stage 0 one first\n"
        "run_stage 1 two second a\n"
        'settings="EXTRA=${EXTRA:-}"\n'
        "run_stage 2 three third\n"
    )

    def run(*words, **env):
        done = bash("recipes/toy/run.sh", "--nproc", "1", *words, cwd=tmp_path, **env)
        ran = tmp_path / "exp/toy/ran"
        lines = ran.read_text().split("\n")[:-1] if ran.exists() else []
        ran.unlink(missing_ok=True)
        return done, lines

    run.folder = tmp_path
    return run


def test_finished_stages_are_skipped(toy):
    done, ran = toy()
    assert ran == ["first", "second", "third smoke=0"], done.stderr
    assert (toy.folder / "exp/toy/logs/stage_0.log").exists()
    done, ran = toy()
    assert ran == []
    assert "done before, skipped" in done.stdout


def test_changed_config_runs_again(toy):
    toy()
    (toy.folder / "recipes/toy/conf/a.yaml").write_text("optim: {lr: 2}\n")
    assert toy()[1] == ["second", "third smoke=0"]  # the stage that reads it and what follows
    assert toy(EXTRA="1")[1] == ["third smoke=0"]


def starts(toy):
    """How often each run folder was trained in since it was last new."""
    out = toy.folder / "exp/toy"
    return {
        str(file.parent.relative_to(out)): len(file.read_text().split())
        for file in out.rglob("starts")
    }


def test_what_runs_again_trains_in_new_folders(toy):
    toy()
    assert starts(toy) == {"one": 1, "two": 1, "after": 1}
    done, _ = toy("--stage", "1")
    twice = {"one": 1, "two": 1, "after": 1}
    assert starts(toy) == twice | {f"replaced/{name}": 1 for name in twice}
    assert "the earlier exp/toy/one is now exp/toy/replaced/one" in done.stdout
    (toy.folder / "recipes/toy/conf/a.yaml").write_text("optim: {lr: 2}\n")
    toy("--stop-stage", "1")  # stage 2 belongs to the earlier stage 1 now
    assert starts(toy) == twice | {f"replaced/{name}": 1 for name in twice}
    toy()
    assert starts(toy) == twice | {f"replaced/{name}": 1 for name in twice}


def test_an_interrupted_stage_resumes_its_own_runs_only(toy):
    toy()
    (toy.folder / "fail-one").touch()
    assert toy("--stage", "1")[0].returncode == 1
    assert starts(toy) == {"one": 1, "two": 1, "after": 1, "replaced/one": 1}
    (toy.folder / "fail-one").unlink()
    toy("--stage", "1")  # as the message says: one goes on, the old two is replaced
    old = {"replaced/one": 1, "replaced/two": 1, "replaced/after": 1}
    assert starts(toy) == {"one": 2, "two": 1, "after": 1} | old


def test_stages_can_be_chosen_and_repeat_what_follows(toy):
    assert toy("--stop-stage", "0")[1] == ["first"]
    assert toy()[1] == ["second", "third smoke=0"]
    assert toy("--stage=1", "--stop_stage=1")[1] == ["second"]
    assert toy()[1] == ["third smoke=0"]


def test_failing_stage_stops_says_where_and_goes_on_later(toy):
    (toy.folder / "fail").touch()
    done, ran = toy()
    assert done.returncode == 1
    assert ran == ["first"]
    assert "Stage 1: two: FAILED" in done.stderr
    assert "bash recipes/toy/run.sh --stage 1 --out exp/toy" in done.stderr
    (toy.folder / "fail").unlink()
    assert toy()[1] == ["second", "third smoke=0"]


JOBS = """
set -euo pipefail
recipe=recipes/mini takes_jobs=1
source recipes/_lib/stages.sh
parse_options --out "$1" --jobs "$2"
job() {
  echo "$1 begins" | tee -a "$out/order"
  sleep "$2"
  echo "$1 ends" >>"$out/order"
  [[ $1 != bad ]]
}
stage() {
  at_once a job a 0.4
  at_once b job "${1:-b}" 0.1
  at_once c job c 0
  all_done
}
stage "${3:-}"
"""


def jobs_of(tmp_path, *words):
    done = bash("-c", JOBS, "jobs", str(tmp_path), *words)
    return done, (tmp_path / "order").read_text().splitlines()


def test_jobs_run_beside_each_other_with_their_names(tmp_path):
    done, order = jobs_of(tmp_path, "2")
    assert done.returncode == 0, done.stderr
    assert order.index("b begins") < order.index("b ends") < order.index("a ends")
    assert order.index("c begins") > order.index("a ends")  # two at a time
    assert {"[a] a begins", "[b] b begins", "[c] c begins"} <= set(done.stdout.splitlines())


def test_one_job_at_a_time_in_order(tmp_path):
    done, order = jobs_of(tmp_path, "1")
    assert done.returncode == 0, done.stderr
    assert order == [f"{job} {what}" for job in "abc" for what in ("begins", "ends")]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_failed_job_fails_its_stage(tmp_path, jobs):
    done, order = jobs_of(tmp_path, jobs, "bad")
    assert done.returncode == 1
    assert ("c ends" in order) == (jobs == "2")  # those already waiting still run
    if jobs == "2":
        assert "a job of this stage failed" in done.stderr


def test_numbers_are_read_from_json(tmp_path):
    file = tmp_path / "wer.json"
    file.write_text('{\n "wer": 0.256,\n "wer_ci95": [\n 0.2,\n 0.31\n ],\n "none": null,\n'
                    ' "per_speaker": {"a": {"wer": 0.9}}\n}')  # fmt: skip
    script = (
        "set -euo pipefail; source recipes/_lib/results.sh; "
        f"echo $(percent {file} wer) $(interval {file}) $(percent {file} none) "
        f"$(percent {file} no) $(percent {tmp_path}/nothing wer)"
    )
    done = bash("-c", script)
    assert done.stdout.split("\n")[0] == "25.6 20.0 to 31.0 - - -"
    assert done.stderr.count("no number") == 3


def test_set_up_without_python_says_what_is_needed(tmp_path):
    shutil.copytree(ROOT / "recipes/_lib", tmp_path / "recipes/_lib")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "tr", "mkdir", "rm", "dirname", "flock"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    done = bash(
        "-c", "source recipes/_lib/setup.sh", cwd=tmp_path, PATH=str(tools), SPEECHSSL_VENV="",
        PYTHON="",
    )  # fmt: skip
    assert done.returncode == 1
    assert "no Python 3.11 or newer found" in done.stderr


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "mini"])
def test_smoke(recipe, tmp_path):
    done = bash(f"recipes/{recipe}/run.sh", "--smoke", "--out", tmp_path / recipe, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "| - |" not in (tmp_path / recipe / "RESULTS.md").read_text(encoding="utf-8")
