"""Linear probes on pooled features."""

import numpy as np
import pytest
import torch

from speechssl.downstream.probe import WeightedLogistic, fit_probe, leave_one_group_out, pooled
from speechssl.errors import DataError
from speechssl.types import Frames


def clusters(seed, count=60, classes=3, dim=5, spread=0.5):
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    return np.eye(classes, dim)[y] * 3 + rng.normal(scale=spread, size=(count, dim)), y


def test_pooled_stacks_layers_and_ignores_padding():
    layers = tuple(torch.randn(2, 6, 4) for _ in range(3))
    lens = torch.tensor([6, 2])
    got = pooled(Frames(layers[-1], lens, layers))
    assert got.shape == (2, 3, 8)
    alone = pooled(Frames(layers[-1][1:, :2], lens[1:], tuple(x[1:, :2] for x in layers)))
    np.testing.assert_allclose(got[1:], alone, rtol=1e-5)
    assert pooled(Frames(layers[0], lens), "mean").shape == (2, 1, 4)


@pytest.mark.parametrize("classifier", ["logistic", "weighted", "lda"])
def test_probe_reads_what_is_there_and_guesses_what_is_not(classifier):
    x, y = clusters(0)
    test_x, test_y = clusters(1)
    names = np.array(["a", "b", "c"])
    assert fit_probe(x, names[y], classifier=classifier).score(test_x, names[test_y]) > 0.95
    shuffled = np.random.default_rng(0).permutation(y)
    assert fit_probe(x, shuffled, classifier=classifier).score(test_x, test_y) < 0.7


def test_probe_chooses_the_layer_that_knows():
    x, y = clusters(0)
    test_x, test_y = clusters(1)
    noise = np.random.default_rng(2)
    stack = np.stack([noise.normal(size=x.shape), x, noise.normal(size=x.shape)], 1)
    test_stack = np.stack([noise.normal(size=x.shape), test_x, noise.normal(size=x.shape)], 1)
    fitted = fit_probe(stack, y)
    assert fitted.layer == 1
    assert fitted.score(test_stack, test_y) > 0.95


def test_one_layer_weighted_is_plain_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = clusters(0, spread=1.5)
    scaled = StandardScaler().fit_transform(x)
    for strength in (0.01, 1.0):
        theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(scaled, y)
        ours = WeightedLogistic(strength).fit(x[:, None], y)
        # A bias common to all classes changes nothing.
        np.testing.assert_allclose(ours.weight.numpy().T, theirs.coef_, atol=2e-3)
        bias = (ours.bias - ours.bias.mean()).numpy()
        np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


def test_weighted_sum_leans_on_the_layer_that_knows():
    x, y = clusters(0)
    noise = np.random.default_rng(2)
    stack = np.stack([noise.normal(size=x.shape), x, np.full(x.shape, 3.0)], 1)
    fitted = WeightedLogistic(1.0).fit(stack, y)
    share = fitted.alpha.softmax(0)
    assert float(share[1]) > 0.8
    assert fitted.score(stack, y) > 0.95
    assert fitted.score(stack, (y + 1) % 3) < 0.05


def test_test_labels_never_reach_the_fit():
    x, y = clusters(0)
    test_x, test_y = clusters(1)
    fitted = fit_probe(x, y)
    right = fitted.score(test_x, test_y)
    wrong = fitted.score(test_x, (test_y + 1) % 3)
    assert right + wrong <= 1.0
    assert right > 0.95


def test_classes_with_one_item_still_work():
    x, y = clusters(0, count=12)
    y = np.where(np.arange(12) == 11, 7, y)
    assert 0.0 <= fit_probe(x, y).score(x, y) <= 1.0


@pytest.mark.parametrize("classifier", ["logistic", "weighted", "lda"])
def test_leave_one_group_out_gives_one_score_a_group(classifier):
    x, y = clusters(0, count=90)
    groups = np.repeat(["s1", "s2", "s3"], 30)
    scores = leave_one_group_out(x, y, groups, classifier=classifier)
    assert list(scores) == ["s1", "s2", "s3"]
    assert min(scores.values()) > 0.9
    x[groups == "s2"] = np.random.default_rng(4).normal(size=(30, 5))
    assert leave_one_group_out(x, y, groups, classifier=classifier)["s2"] < 0.7


def test_shapes_and_groups_are_checked():
    with pytest.raises(DataError, match="expected \\(N, D\\)"):
        fit_probe(np.zeros(3), [0, 1, 0])
    with pytest.raises(DataError, match="at least 2"):
        leave_one_group_out(np.zeros((2, 2)), [0, 1], ["a", "a"])
