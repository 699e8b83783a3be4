"""Equal error rate and detection costs against slow sweeps; trial lists."""

import numpy as np
import pytest

from speechssl.errors import DataError
from speechssl.evaluation.eer import (
    Trial,
    cosine_scores,
    read_trials,
    score,
    trials,
    write_scores,
)


def slow_rates(scores, targets):
    """(threshold, false alarm, miss) at every score, and above all of them."""
    scores, targets = np.asarray(scores, float), np.asarray(targets, bool)
    for threshold in [*sorted(set(scores.tolist())), np.inf]:
        accepted = scores >= threshold
        yield threshold, accepted[~targets].mean(), (~accepted[targets]).mean()


def gaussian_trials(distance, count=2000, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 2 == 0
    return rng.normal(size=count) + distance * targets, targets


def test_perfect_reversed_and_useless_scores():
    assert score([1, 2, 3, 4], [0, 0, 1, 1]).eer == 0.0
    assert score([1, 2, 3, 4], [0, 0, 1, 1]).min_dcf_01 == 0.0
    assert score([4, 3, 2, 1], [0, 0, 1, 1]).eer == 1.0
    same = score([0.5] * 6, [0, 0, 0, 1, 1, 1])
    assert (same.eer, same.min_dcf_01, same.min_dcf_05) == pytest.approx((0.5, 1.0, 1.0))
    scores, targets = gaussian_trials(3.0)
    shuffled = np.random.default_rng(1).permutation(targets)
    assert score(scores, shuffled).eer == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_sweep_over_all_thresholds(seed):
    scores, targets = gaussian_trials(1.5, count=61, seed=seed)
    scores = np.round(scores, 1)  # ties
    report = score(scores, targets)
    rates = list(slow_rates(scores, targets))
    for prior, got in ((0.01, report.min_dcf_01), (0.05, report.min_dcf_05)):
        least = min(prior * miss + (1 - prior) * alarm for _, alarm, miss in rates)
        assert got == pytest.approx(least / prior)
    low = max(min(alarm, miss) for _, alarm, miss in rates)
    high = min(max(alarm, miss) for _, alarm, miss in rates)
    assert low - 1e-9 <= report.eer <= high + 1e-9
    assert (report.num_target, report.num_nontarget) == (31, 30)


def test_gaussian_scores_give_the_known_rate():
    scores, targets = gaussian_trials(2.0, count=100_000)
    report = score(scores, targets)
    assert report.eer == pytest.approx(0.1587, abs=0.005)  # Phi(-1)
    assert report.threshold == pytest.approx(1.0, abs=0.05)


def test_bad_scores_are_refused():
    with pytest.raises(DataError, match="both kinds"):
        score([1.0, 2.0], [1, 1])
    with pytest.raises(DataError, match="1 of 2 scores not finite"):
        score([1.0, float("nan")], [1, 0])
    with pytest.raises(DataError, match="for"):
        score([1.0], [1, 0])


def corpus(speakers=8, each=6):
    ids = [f"s{s}-{u}" for s in range(speakers) for u in range(each)]
    return ids, [i.split("-")[0] for i in ids]


@pytest.mark.parametrize("most", [10, 60, 10_000])  # drawn, listed and cut, all
def test_trials_are_true_unique_and_repeatable(most):
    ids, speakers = corpus()
    made = trials(ids, speakers, seed=3, max_per_class=most)
    assert made == trials(ids[::-1], speakers[::-1], seed=3, max_per_class=most)
    assert len({frozenset(pair[:2]) for pair in made}) == len(made)
    for pair in made:
        assert pair.target == (pair.enrol.split("-")[0] == pair.test.split("-")[0])
        assert pair.enrol != pair.test
    same = sum(pair.target for pair in made)
    assert same == min(most, 8 * 15)
    assert len(made) - same == min(most, 48 * 47 // 2 - 8 * 15)
    if most == 10:
        assert made != trials(ids, speakers, seed=4, max_per_class=most)


def test_impossible_trials_are_refused():
    with pytest.raises(DataError, match="0 other pairs"):
        trials(["a", "b"], ["s", "s"])
    with pytest.raises(DataError, match="0 same-speaker"):
        trials(["a", "b"], ["s", "t"])


def test_trials_survive_a_round_trip_with_scores(tmp_path):
    made = trials(*corpus(), max_per_class=5)
    write_scores(tmp_path / "scores", made, np.linspace(-1, 1, len(made)))
    assert read_trials(tmp_path / "scores") == made
    first = (tmp_path / "scores").read_text().splitlines()[0].split()
    assert first[2:] == ["-1.000000", "target" if made[0].target else "nontarget"]


def test_voxceleb_and_kaldi_lists_are_read(tmp_path):
    path = tmp_path / "list"
    path.write_text("1 a.wav b.wav\n0 a.wav c.wav\n\n")
    assert read_trials(path) == [Trial("a.wav", "b.wav", True), Trial("a.wav", "c.wav", False)]
    path.write_text("a b target\na c nontarget\n")
    assert read_trials(path) == [Trial("a", "b", True), Trial("a", "c", False)]
    path.write_text("1 a b\n2 a c\n")
    with pytest.raises(DataError, match="line 2: got '2 a c'"):
        read_trials(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="no trials"):
        read_trials(path)


def test_cosine_of_embeddings():
    vectors = {"a": np.array([1.0, 0.0]), "b": np.array([2.0, 0.0]), "c": np.array([0.0, 3.0])}
    made = [Trial("a", "b", True), Trial("a", "c", False)]
    np.testing.assert_allclose(cosine_scores(made, vectors), [1.0, 0.0])
    moved = {name: v + 100.0 for name, v in vectors.items()}
    np.testing.assert_allclose(
        cosine_scores(made, moved, centre=True), cosine_scores(made, vectors, centre=True)
    )
    with pytest.raises(DataError, match="no embedding"):
        cosine_scores([Trial("a", "z", True)], vectors)
