"""Reading and smoothing learning curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speechssl.errors import DataError
from speechssl.report.curves import read_curves, smoothed


def test_the_last_value_of_a_step_counts_and_torn_lines_do_not(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train", "loss": 3.0, "time": 9}\n'
        '{"step": 2, "split": "train", "loss": null}\n'
        '{"step": 1, "split": "train", "loss": 2.0}\n'
        '{"step": 2, "split": "valid", "loss": 1.5}\n'
        '{"step": 3, "split": "tra'
    )
    (tmp_path / "run.json").write_text('{"chance": {"loss": 4.6}}')
    run = read_curves(tmp_path)
    assert run.curves == {("train", "loss"): ([1], [2.0]), ("valid", "loss"): ([2], [1.5])}
    assert run.chance == {"loss": 4.6}


def test_a_folder_without_metrics_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="expected the folder of a training run"):
        read_curves(tmp_path)


def test_smoothing_averages_the_neighbours_there_are():
    _, y = smoothed([1, 2, 3, 4], [0.0, 3.0, 6.0, 9.0], 3)
    np.testing.assert_allclose(y, [1.5, 3.0, 6.0, 7.5])
