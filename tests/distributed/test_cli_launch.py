"""The real command line with the real objective: launchers agree, and kill -9 leaves no trace."""

import sys
from pathlib import Path

import pytest

from tests.distributed.speech import call, corpus, launcher, told, words

pytestmark = pytest.mark.dist

MODULE = [sys.executable, "-m", "speechssl"]
#: Without dropout and the diversity term, the split over ranks changes nothing but rounding.
EXACT = ("--backbone.dropout", "0", "--objective.diversity_weight", "0", "--optim.steps", "4")
#: Depends on the split of a batch, hence its weight of 0 above.
PER_BATCH = ("diversity", "padding")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("speech")
    corpus(made)
    return made


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("runs") / "alone"
    done = call([*MODULE, *words(folder, out, *EXACT)])
    assert done.returncode == 0, done.stderr
    return told(out)


@pytest.mark.parametrize(
    ("name", "kind", "stage"), [("deepspeed", "deepspeed", "2"), ("torchrun", "plain", "0")]
)
def test_launchers_tell_what_one_process_tells(folder, alone, tmp_path, name, kind, stage):
    out = tmp_path / "run"
    engine = ("--engine.kind", kind, "--engine.zero_stage", stage)
    done = call([*launcher(name), "speechssl", *words(folder, out, *EXACT, *engine)])
    assert done.returncode == 0, done.stderr[-4000:]
    assert "2 processes" in done.stdout
    assert (out / "model" / "model.safetensors").stat().st_size > 0
    both = told(out)
    assert [line["step"] for line in both] == [1, 2, 3, 4] == [line["step"] for line in alone]
    for line, expected in zip(both, alone, strict=True):
        assert line.keys() == expected.keys()
        for key in line.keys() - {"split", *PER_BATCH}:
            assert line[key] == pytest.approx(expected[key], rel=1e-5), key


def test_kill_9_then_the_same_command_is_bitwise_the_undisturbed_run(folder, tmp_path):
    def train(out: Path, **environment: str):
        options = (
            *("--objective.name", "tests.distributed.speech:MayBeKilled"),
            *("--backbone.dropout", "0.1", "--backbone.layerdrop", "0.3"),
            *("--backbone.feature_dropout", "0.1", "--data.valid", str(folder / "valid.jsonl")),
            *("--engine.kind", "deepspeed", "--engine.zero_stage", "1", "--data.workers", "1"),
            *("--optim.steps", "10", "--run.save_every_steps", "3", "--run.valid_every_steps", "4"),
        )
        return call([*MODULE, *words(folder, out, *options)], **environment)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = train(whole)
    assert done.returncode == 0, done.stderr[-4000:]

    killed = train(broken, KILL_BEFORE_STEP="5")  # checkpoints are made after 3, 6 and 9
    assert killed.returncode == -9, killed.stderr[-4000:]
    assert [line["step"] for line in told(broken)] == [1, 2, 3, 4, 4, 5]
    assert (broken / "ckpt" / "latest").read_text().strip() == "step_00000003"
    again = train(broken)
    assert again.returncode == 0, again.stderr[-4000:]
    assert "resuming after step 3 of 10" in again.stderr

    assert told(broken) == told(whole)  # every number, each step once
    assert [line["step"] for line in told(whole) if line["split"] == "train"] == [*range(1, 11)]
    for model in ("model_best", "model_last"):
        weights = [(out / model / "model.safetensors").read_bytes() for out in (whole, broken)]
        assert weights[0] == weights[1], model
