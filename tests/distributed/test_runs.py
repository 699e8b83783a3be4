"""Whole runs in processes of their own: killed, signalled, damaged, and gone on with."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.dist

SCRIPT = Path(__file__).with_name("run_toy.py")


def launch(out: Path, *options: str, ranks: int = 1) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), str(out), *options]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command[1:1] = launcher
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=environment, check=False
    )


def told(out: Path) -> list[dict]:
    """The lines of metrics.jsonl less clocks."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    clocks = ("time", "audio_sec_per_sec")
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def digest(out: Path) -> dict[str, str]:
    found = {}
    for name in ("model_best", "model_last"):
        weights = torch.load(out / name / "weights.pt", weights_only=True)
        total = hashlib.sha256()
        for key in sorted(weights):
            total.update(weights[key].numpy().tobytes())
        found[name] = total.hexdigest()
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("calm")
    done = launch(out)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 10
    return out


def test_undisturbed_run(calm):
    lines = told(calm)
    steps = [(line["split"], line["step"]) for line in lines]
    assert [s for split, s in steps if split == "train"] == [2, 4, 6, 8, 10]
    assert [s for split, s in steps if split == "valid"] == [4, 8, 10]
    keys = {"loss", "lr", "grad_norm", "padding", "close"}
    assert all(keys <= line.keys() for line in lines if line["split"] == "train")
    assert not any(path.name.startswith(".tmp") for path in (calm / "ckpt").iterdir())


@pytest.mark.parametrize("at", [5, 7])
def test_kill_9_and_again(tmp_path, calm, at):
    killed = launch(tmp_path, "--send", f"SIGKILL:{at}:0")
    assert killed.returncode == -9
    again = launch(tmp_path)
    assert again.returncode == 0, again.stderr
    assert told(tmp_path) == told(calm)
    assert digest(tmp_path) == digest(calm)


def test_sigterm_saves_and_goes_on(tmp_path, calm):
    stopped = launch(tmp_path, "--send", "SIGTERM:4:0")
    assert stopped.returncode == 75, stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert (tmp_path / "ckpt" / "latest").read_text().strip() == "step_00000005"
    again = launch(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming after step 5" in again.stderr
    assert digest(tmp_path) == digest(calm)
    assert [line["step"] for line in told(tmp_path)] == [line["step"] for line in told(calm)]


def test_finished_run_only_says_so(calm):
    before = told(calm)
    again = launch(calm)
    assert again.returncode == 0, again.stderr
    assert told(calm) == before


def test_two_ranks_of_deepspeed_die_and_resume(tmp_path):
    options = ("--kind", "deepspeed", "--zero-stage", "2")
    whole = launch(tmp_path / "whole", *options, ranks=2)
    assert whole.returncode == 0, whole.stderr[-3000:]
    json.loads(whole.stdout)  # DeepSpeed keeps off stdout
    config = json.loads((tmp_path / "whole" / "deepspeed_config.json").read_text())
    assert config["gradient_clipping"] == 1.0
    assert config["communication_data_type"] == "fp32"

    out = tmp_path / "broken"
    killed = launch(out, *options, "--send", "SIGKILL:5:1", ranks=2)
    assert killed.returncode != 0
    assert (out / "ckpt" / "latest").read_text().strip() == "step_00000003"
    stopped = launch(out, *options, "--send", "SIGUSR1:7:1", ranks=2)  # one rank hears it
    assert "InterruptedAndSaved" in stopped.stderr, stopped.stderr[-3000:]
    assert (out / "ckpt" / "latest").read_text().strip() == "step_00000008"
    again = launch(out, *options, ranks=2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert digest(out) == digest(tmp_path / "whole")
