"""The loop in this process: validations cut short, equal scores, errors kept."""

import errno
import fcntl
import json
import os
import signal

import pytest
import torch

from speechssl.engine.base import InterruptedAndSaved
from speechssl.engine.config import EngineConfig, OptimConfig, RunConfig
from speechssl.engine.loop import _better, _sole_owner, train
from speechssl.errors import ConfigError
from tests.distributed import toy


class Valid(toy.ToyValid):
    """Sends itself SIGTERM in the middle of the n-th validation."""

    def __init__(self, interrupted: int | None = None) -> None:
        super().__init__()
        self.interrupted, self.count = interrupted, 0

    def batches(self):
        self.count += 1
        for i, batch in enumerate(super().batches()):
            if i == 1 and self.count == self.interrupted:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def run(out, interrupted=None, before=None):
    def export(folder, weights):
        folder.mkdir(exist_ok=True)
        torch.save(weights, folder / "weights.pt")

    return train(
        toy.build(0.1),
        toy.ToyData(micro=2, before=before),
        Valid(interrupted),
        RunConfig(str(out), log_every_steps=2, valid_every_steps=2, save_every_steps=3),
        OptimConfig(lr=1e-2, steps=4),
        EngineConfig(),
        export=export,
        config={},
        seed=3,
    )


def told(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    clocks = ("time", "audio_sec_per_sec")
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    out = tmp_path_factory.mktemp("calm")
    return out, run(out)


@pytest.mark.parametrize("interrupted", [1, 2])  # of step 2, and of step 4, the last
def test_a_validation_cut_short_is_made_up_for(tmp_path, calm, interrupted):
    with pytest.raises(InterruptedAndSaved, match=f"at step {2 * interrupted} of 4"):
        run(tmp_path, interrupted)
    assert len(told(tmp_path)) == len(told(calm[0])) - (3 if interrupted == 1 else 1)
    with pytest.raises(InterruptedAndSaved):
        run(tmp_path, 1)  # and again
    assert run(tmp_path) == calm[1]
    assert told(tmp_path) == told(calm[0])
    assert run(tmp_path) == calm[1]  # finished: nothing is due any more
    assert told(tmp_path) == told(calm[0])


def test_throughput_counts_time_with_its_audio(tmp_path, calm):
    with pytest.raises(InterruptedAndSaved):
        run(tmp_path, before=lambda step: step == 0 and os.kill(os.getpid(), signal.SIGTERM))
    manifest = json.loads((tmp_path / "ckpt" / "step_00000001" / "MANIFEST.json").read_text())
    assert manifest["window"]["seconds"][0] > 0
    assert manifest["window"]["audio_sec"][0] > 0


def test_the_traceback_of_a_rank_is_kept(tmp_path):
    def before(step):
        if step == 1:
            raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError) as caught:
        run(tmp_path, before=before)
    file = tmp_path / "errors" / "rank_0.txt"
    assert str(file) in "".join(caught.value.__notes__)
    text = file.read_text()
    assert "step     1\n" in text
    assert "RuntimeError: the disk is on fire" in text


def test_equal_scores_are_decided_by_the_next():
    less = [False, False]
    assert _better([0.5, 0.2], None, less)
    assert _better([0.5, 0.1], [0.5, 0.2], less)
    assert not _better([0.5, 0.2], [0.5, 0.2], less)
    assert not _better([0.6, 0.0], [0.5, 0.2], less)
    assert _better([0.5, 0.3], [0.5, 0.2], [False, True])
    assert not _better([0.5, float("nan")], [0.5, 0.2], less)
    assert not _better([float("nan"), 0.1], None, less)
    assert not _better([0.5, 0.1], [0.5], less)  # a checkpoint without ties


def test_one_run_at_a_time_in_a_folder(tmp_path):
    second = _sole_owner(tmp_path)
    with _sole_owner(tmp_path), pytest.raises(ConfigError, match="in use by another run"):
        second.__enter__()
    with _sole_owner(tmp_path):
        pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with _sole_owner(tmp_path / "run"):
        assert "cannot be locked" in caplog.text
