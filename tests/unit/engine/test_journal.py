"""Metrics and what is told of them."""

import json
import logging
import os

import pytest
import torch

from speechssl.engine import dist
from speechssl.engine.journal import Journal, describe, read_metrics
from speechssl.engine.metrics import Metrics
from speechssl.engine.signals import StopSignal
from speechssl.errors import ConfigError
from speechssl.types import Sum


def means(sums):
    return {k: float(s.total) / float(s.count) for k, s in sums.items() if s.total.ndim == 0}


def test_sums_add_up_and_survive_a_checkpoint():
    metrics = Metrics()
    metrics.add("loss", torch.tensor(0.1), torch.tensor(3))
    metrics.merge({"loss": Sum(torch.tensor(0.7), torch.tensor(2)), "h": Sum(*torch.ones(2, 4))})
    state = json.loads(json.dumps(metrics.state()))
    again = Metrics()
    again.restore(state)
    for one in (metrics, again):
        one.add("loss", 1.0, 1.0)
        assert one.reduced()["h"].total.tolist() == [1, 1, 1, 1]
    assert metrics.scalars(means) == again.scalars(means)
    assert metrics.scalars(means)["loss"] == pytest.approx(1.8 / 6)


def test_summary_may_leave_the_loss_out():
    metrics = Metrics()
    metrics.add("loss", 4.0, 2.0)
    assert metrics.scalars(lambda sums: {"accuracy": 0.5}) == {"loss": 2.0, "accuracy": 0.5}


def test_reduction_of_nothing():
    assert dist.all_reduce_sum({}) == {}
    assert not dist.any_true(False)


def test_chance_stands_beside_the_metric():
    text = describe({"loss": 4.61, "accuracy": 0.0151, "padding": 0.2}, {"loss": 4.62})
    assert text == "loss 4.61 (chance 4.62)  accuracy 0.0151"


def test_lines_after_the_resumed_step_are_taken_back(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        journal = Journal(tmp_path, 0, 10)
        for step in (2, 4, 6):
            journal.record(step, "train", {"loss": float(step)}, {"loss": 9.0})
        journal.record(6, "valid", {"loss": float("nan")}, {})
        journal.close()
    assert "train 4/10  loss 4 (chance 9)  ETA" in caplog.text
    with journal.path.open("a") as file:
        file.write('{"step": 7, "spl')
    Journal(tmp_path, 4, 10).close()
    assert [line["step"] for line in read_metrics(journal.path)] == [2, 4]
    Journal(tmp_path, 0, 10).close()
    assert read_metrics(journal.path) == []


def test_unfinished_numbers_are_null(tmp_path):
    journal = Journal(tmp_path, 0, 10)
    journal.record(1, "train", {"loss": float("inf")}, {})
    journal.close()
    assert read_metrics(journal.path)[0]["loss"] is None


def test_signal_raises_a_flag_and_handlers_come_back():
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop
        assert list(stop.until_heard([1, 2])) == [1, 2]
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.name == "SIGTERM"
        assert list(stop.until_heard([1, 2])) == [1]  # ZeRO-3 needs one batch on every rank
    assert signal.getsignal(signal.SIGTERM) is before


def test_srun_needs_a_meeting_point(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        dist.setup()


def test_srun_tasks_that_see_one_gpu_each_take_number_0(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    slurm = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "5"}
    for name, value in (slurm | {"MASTER_ADDR": "here", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    dist._from_slurm()
    assert [os.environ[n] for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["5", "8", "0"]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="process 2 of this machine.*2 can be seen"):
        dist.setup()


def test_the_bar_shows_little_and_every_line_is_kept_above_it(tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    journal = Journal(tmp_path, 0, 10)
    shown = {"loss": 4.0, "accuracy": 0.5, "lr": 0.1}
    journal.record(2, "train", shown, {"accuracy": 0.25})
    journal.record(2, "valid", {"loss": 5.0, "wer": 0.75, "cer": 0.5}, {})
    bar = journal.bar.postfix
    journal.close()
    assert bar == "loss 5  accuracy 0.5  wer 0.75"
    told = capsys.readouterr().err
    assert "train 2/10  loss 4  accuracy 0.5 (chance 0.25)  lr 0.1" in told
    assert "valid 2/10  loss 5  wer 0.75  cer 0.5" in told
