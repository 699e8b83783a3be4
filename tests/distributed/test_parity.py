"""Plain and DeepSpeed stages 0 to 3 on two ranks, against one process and against each other."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speechssl.engine.config import EngineConfig
from speechssl.engine.plain import PlainEngine
from speechssl.types import Progress
from tests.distributed import parity, toy

pytestmark = pytest.mark.dist

DEEPSPEED = [f"deepspeed{stage}" for stage in range(4)]
ENGINES = ["plain0", *DEEPSPEED]


@pytest.fixture(scope="module")
def table() -> dict:
    script = Path(__file__).with_name("parity.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, "--nproc_per_node", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)  # fails if DeepSpeed wrote anything to stdout


def close(a: dict, b: dict, atol: float = 2e-6, rel: float = 1e-6) -> None:
    assert a["losses"] == pytest.approx(b["losses"], rel=rel)
    assert a["norms"] == pytest.approx(b["norms"], rel=10 * rel)
    assert a["weights"].keys() == b["weights"].keys()
    for name, value in b["weights"].items():
        got, expected = torch.tensor(a["weights"][name]), torch.tensor(value)
        torch.testing.assert_close(got, expected, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("name", ENGINES)
def test_two_ranks_equal_one_process(table, name):
    progress = Progress(max_steps=20, seed=5)
    cpu = torch.device("cpu")
    one = PlainEngine(toy.build(0.0), parity.OPTIM, EngineConfig(), cpu, progress)
    stats = [one.step(toy.ToyData().update(step)) for step in range(parity.STEPS)]
    alone = {
        "losses": [float(s.loss.total) for s in stats],
        "norms": [s.grad_norm for s in stats],
        "weights": {k: v.tolist() for k, v in one.full_state_dict().items()},
    }
    close(table[f"{name} even"], alone)


@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed_equals_plain_with_dropout_and_unused_layers(table, name):
    close(table[f"{name} dropout"], table["plain0 dropout"])


@pytest.mark.parametrize("name", ENGINES)
def test_nan_on_one_rank_is_skipped_by_all(table, name):
    assert table[name]["skipped"]
    assert table[name]["untouched"]
    close(table[name]["after_skip"], table["plain0"]["after_skip"])
    assert all(math.isfinite(x) for x in table[name]["after_skip"]["losses"])


@pytest.mark.parametrize("name", ENGINES)
def test_resume_is_bitwise(table, name):
    assert table[name]["bitwise"]


@pytest.mark.parametrize("name", ENGINES)
def test_validation_counts_each_utterance_once(table, name):
    assert table[name]["valid"] == pytest.approx(table["plain0"]["valid"], rel=1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_loss_scale_cancels(table, name):
    close(table[f"{name} scaled"], table["plain0 even"])


@pytest.mark.parametrize("name", ENGINES)
def test_bf16_is_autocast_over_fp32_weights(table, name):
    half = table[f"{name} bf16"]
    assert half["dtype"] == "torch.bfloat16"
    assert half["masters"] == ["torch.float32"]
    assert half["losses"] != table[f"{name} even"]["losses"]
    close(half, table["plain0 bf16"], atol=1e-4, rel=1e-3)
