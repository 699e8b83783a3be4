"""A teacher and codebooks that follow: two ranks, accumulation and DeepSpeed end where one does."""

import sys
from pathlib import Path

import pytest
import torch

from tests.distributed import speech, teacher_ranks

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("speech")
    speech.corpus(made)
    return made


@pytest.fixture(scope="module")
def ranks(folder: Path) -> dict:
    result = folder / "result.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = teacher_ranks.__file__
    done = speech.call([*command, "--nproc_per_node", "2", script, str(folder), str(result)])
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(result, weights_only=True)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict:
    return teacher_ranks.run(folder, teacher_ranks.ENGINES[0])


@pytest.mark.parametrize("name", [f"{c.kind}{c.zero_stage}" for c in teacher_ranks.ENGINES])
def test_two_ranks_end_where_one_process_does(ranks, alone, name):
    found = ranks[name]
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert found["weights"].keys() == alone["weights"].keys()
    for key, value in alone["weights"].items():
        torch.testing.assert_close(found["weights"][key], value, rtol=1e-4, atol=1e-4, msg=key)


def test_they_all_moved(alone):
    weights = alone["weights"]
    teacher, student = "teacher.network.layers.0.attention.k_proj.weight", "backbone.encoder"
    own = weights[teacher.replace("teacher.network", student)]
    assert not torch.equal(weights[teacher], own)
    assert (weights["codebooks.counts"] != 1).any()
    assert (weights["codebooks.idle"] == 0).any()
