"""wav2vec 2.0 on two ranks: the gradient of one process, and DeepSpeed's updates are the plain's.

The toy of the other tests is quick; this is the model that is trained, fed by its own loader.
"""

import sys
from pathlib import Path

import pytest
import torch

from tests.distributed import speech, wav2vec2_ranks

pytestmark = pytest.mark.dist

STAGES = [f"deepspeed{stage}" for stage in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("speech")
    speech.corpus(made)
    return made


@pytest.fixture(scope="module")
def ranks(folder: Path) -> dict:
    result = folder / "result.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = wav2vec2_ranks.__file__
    done = speech.call([*command, "--nproc_per_node", "2", script, str(folder), str(result)])
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(result, weights_only=True)


def distance(a: dict, b: dict) -> dict[str, float]:
    """Per parameter, the norm of the difference over the norm of `b`.

    Where the true gradient is zero (biases of keys) only rounding is left, which is compared with
    a thousandth of the whole gradient instead.
    """
    assert a.keys() == b.keys()
    floor = 1e-3 * float(torch.stack([g.norm() for g in b.values()]).norm())
    return {k: float((a[k] - b[k]).norm() / max(float(b[k].norm()), floor)) for k in b}


@pytest.mark.parametrize("variant", wav2vec2_ranks.EXACT)
def test_gradients_do_not_depend_on_the_split(folder, ranks, variant):
    whole, num_micro = wav2vec2_ranks.gradients(folder, variant, 2 * wav2vec2_ranks.CFG.batch_sec)
    assert num_micro == 1
    assert all(g.isfinite().all() for g in whole.values())
    assert sum(bool(g.any()) for g in whole.values()) > 0.9 * len(whole)
    accumulated, num_micro = wav2vec2_ranks.gradients(folder, variant, wav2vec2_ranks.CFG.batch_sec)
    assert num_micro == 2
    assert ranks[f"{variant} micro"] == [1, 1]
    for other in (accumulated, ranks[variant]):
        worst = distance(other, whole)
        assert max(worst.values()) < 1e-5, sorted(worst.items(), key=lambda x: -x[1])[:5]


def test_layers_are_dropped_and_parameters_sharded(ranks):
    dropped = ranks["plain0"]["dropped"]
    assert len(set(map(tuple, dropped))) > 2  # another choice from update to update
    assert all(ranks[name]["dropped"] == dropped for name in STAGES)
    assert [ranks[name]["sharded"] for name in STAGES] == [False, False, False, True]


@pytest.mark.parametrize("name", STAGES)
def test_deepspeed_equals_plain(ranks, name):
    found, expected = ranks[name], ranks["plain0"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    assert found["weights"].keys() == expected["weights"].keys()
    for key, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][key], value, rtol=0, atol=1e-5, msg=key)
