import math

import numpy as np
import pytest
import torch

from speechssl.evaluation import collapse


def gaussian(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_rankme_follows_its_formula():
    z = gaussian(300, 20)
    sigma = np.linalg.svd(z.numpy(), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert collapse.rankme(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)


def test_rankme_of_equal_singular_values_is_the_dimension():
    z = torch.linalg.qr(gaussian(200, 16)).Q
    assert collapse.rankme(z) == pytest.approx(16, rel=1e-3)


def test_rankme_of_one_direction_is_one():
    z = gaussian(200, 1) @ gaussian(1, 32, seed=1)
    assert collapse.rankme(z) == pytest.approx(1, abs=0.01)


def test_a_common_mean_hides_the_rank_unless_centred():
    z = gaussian(512, 64) @ gaussian(64, 128, seed=1) / 8 + 20
    raw, centred = collapse.rankme(z), collapse.rankme(z, centre=True)
    assert raw < 10 < 45 < centred <= 65


def test_std_l2_is_healthy_for_noise_and_zero_for_a_constant():
    assert collapse.std_l2(gaussian(4000, 64)) * 8 == pytest.approx(1, rel=0.02)
    assert collapse.std_l2(torch.ones(10, 64)) == pytest.approx(0, abs=1e-6)


def test_mean_cos_pairs_only_different_utterances():
    z = torch.eye(3).repeat_interleave(torch.tensor([50, 5, 20]), dim=0)
    utterance = torch.tensor([7] * 50 + [2] * 5 + [9] * 20)
    assert collapse.mean_cos(z, utterance) == 0  # one pair of a single utterance would give more
    shuffle = torch.randperm(75, generator=torch.Generator().manual_seed(3))
    assert collapse.mean_cos(z[shuffle], utterance[shuffle]) == 0


def test_mean_cos_equals_the_mean_over_all_pairs():
    z = gaussian(40, 4) + 1
    utterance = torch.arange(40) // 10
    unit = torch.nn.functional.normalize(z, dim=1)
    other = utterance[:, None] != utterance[None, :]
    exact = float((unit @ unit.T)[other].mean())
    assert collapse.mean_cos(z, utterance, num_pairs=200_000) == pytest.approx(exact, abs=0.01)
    assert collapse.mean_cos(z, utterance) == collapse.mean_cos(z, utterance)


def test_summary_leaves_out_what_the_sample_is_too_small_for():
    few = collapse.summary(gaussian(20, 16), torch.zeros(20, dtype=torch.int64))
    assert set(few) == {"std_l2", "std_l2_healthy"}
    many = collapse.summary(gaussian(40, 16), torch.arange(40) % 2)
    assert {"rankme", "rankme_centred", "mean_cos"} <= set(many)


@pytest.mark.parametrize("z", [torch.ones(3), torch.ones(1, 4), torch.tensor([[0.0], [math.nan]])])
def test_bad_embeddings_are_refused(z: torch.Tensor):
    with pytest.raises(ValueError, match="embeddings"):
        collapse.rankme(z)


def test_one_utterance_has_no_pairs():
    with pytest.raises(ValueError, match="two utterances"):
        collapse.mean_cos(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
