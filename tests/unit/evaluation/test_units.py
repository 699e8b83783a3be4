"""Quality of discrete units against hand counts and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from speechssl.evaluation.units import Joint, names_at, quality, usage


def test_a_moment_has_the_name_of_the_span_it_lies_in():
    spans = [("a", 0.1, 0.2), ("b", 0.2, 0.35)]
    times = np.array([0.0, 0.1, 0.19, 0.2, 0.34, 0.35])
    assert names_at(spans, times).tolist() == ["", "a", "a", "b", "b", ""]


def test_quality_equals_its_definition():
    rng = np.random.default_rng(0)
    units = rng.integers(5, size=400)
    names = np.array(["x", "y", "z"])[(units + rng.integers(2, size=400)) % 3]
    joint = Joint(5)
    joint.add(units[:150], names[:150])
    joint.add(units[150:], names[150:])
    found = quality(joint.table())
    shares = np.array([(names == n).mean() for n in "xyz"])
    entropy = -(shares * np.log(shares)).sum()
    assert found["pnmi"] == pytest.approx(mutual_info_score(names, units) / entropy)
    best = sum(max(((units == u) & (names == n)).sum() for n in "xyz") for u in range(5))
    assert found["purity"] == pytest.approx(best / 400)
    best = sum(max(((units == u) & (names == n)).sum() for u in range(5)) for n in "xyz")
    assert found["cluster_purity"] == pytest.approx(best / 400)


def test_units_that_know_everything_or_nothing():
    assert quality(np.diag([3, 5, 2]))["pnmi"] == pytest.approx(1.0)
    assert quality(np.ones((4, 3)))["pnmi"] == pytest.approx(0.0, abs=1e-12)
    assert quality(np.ones((4, 1))) == {}
    assert quality(Joint(3).table()) == {}


def test_usage_of_units():
    found = usage(np.array([6, 3, 0, 3]), 100.0, changes=4)
    assert found["perplexity"] == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert (found["frames"], found["empty"], found["top_share"]) == (12, 1, 0.5)
    assert found["mean_sec"] == pytest.approx(0.03)
