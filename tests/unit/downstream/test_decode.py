"""CTC decoding against enumeration of every alignment."""

from itertools import product

import numpy as np
import pytest
import torch

from speechssl.downstream.decode import collapse, decode, greedy, prefix_beam, spell


def random_log_probs(frames, classes, seed):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(scale=1.5, size=(frames, classes))).log_softmax(-1)


def enumerate_sequences(log_probs):
    """Sequence -> probability, by adding up every path."""
    found = {}
    frames, classes = log_probs.shape
    for path in product(range(classes), repeat=frames):
        p = np.exp(sum(float(log_probs[t, v]) for t, v in enumerate(path)))
        ids = tuple(v for i, v in enumerate(path) if v and (i == 0 or path[i - 1] != v))
        found[ids] = found.get(ids, 0.0) + p
    return found


def test_collapse_merges_repeats_and_keeps_doubled_letters_apart():
    ids, frames = collapse(np.array([0, 3, 3, 0, 3, 1, 1, 2, 0]))
    assert ids.tolist() == [3, 3, 1, 2]
    assert frames.tolist() == [1, 4, 5, 7]


def test_greedy_reads_no_padding_and_scores_its_path():
    log_probs = random_log_probs(12, 4, 0).view(2, 6, 4)
    short, long = greedy(log_probs, torch.tensor([3, 6]))
    assert short == greedy(log_probs[0, :3])[0]
    assert short.score == pytest.approx(float(log_probs[0, :3].max(-1)[0].sum()))
    assert max(long.frames, default=0) < 6


def test_greedy_takes_logits_and_no_frames():
    logits = random_log_probs(5, 4, 1)[None] + 7.0
    assert greedy(logits)[0].score == pytest.approx(greedy(logits - 7.0)[0].score, abs=1e-5)
    assert greedy(logits, torch.tensor([0]))[0].ids == ()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("frames", "classes"), [(1, 3), (4, 3), (5, 3), (4, 4)])
def test_wide_beam_equals_enumeration(frames, classes, seed):
    log_probs = random_log_probs(frames, classes, seed)
    truth = sorted(enumerate_sequences(log_probs).items(), key=lambda item: -item[1])
    found = prefix_beam(log_probs, beam=10_000, num_best=len(truth))
    assert len(found) == len(truth)
    np.testing.assert_allclose(np.exp([h.score for h in found]), [p for _, p in truth], rtol=1e-5)
    assert [h.ids for h in found] == [ids for ids, _ in truth]
    assert sum(np.exp(h.score) for h in found) == pytest.approx(1.0, rel=1e-5)


def test_narrow_beam_never_claims_more_than_the_truth():
    for seed in range(10):
        log_probs = random_log_probs(5, 4, seed)
        truth = enumerate_sequences(log_probs)
        for beam in (1, 2, 4):
            best = prefix_beam(log_probs, beam)[0]
            assert np.exp(best.score) <= truth[best.ids] * (1 + 1e-6)


def test_beam_finds_what_the_best_path_misses():
    # Blank is best in every frame, but the paths that spell (1,) weigh more together.
    log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert greedy(log_probs)[0].ids == ()
    best = prefix_beam(log_probs, beam=4)[0]
    assert best.ids == (1,)
    assert best.score == pytest.approx(np.log(0.64), abs=1e-6)


def test_beam_takes_zero_probabilities_and_no_frames():
    one_hot = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).log()
    assert prefix_beam(one_hot, 3)[0].ids == (1, 1)
    empty = prefix_beam(torch.zeros(0, 3), 3)[0]
    assert (empty.ids, empty.score) == ((), 0.0)


@pytest.mark.parametrize(("beam", "num_best"), [(0, 1), (2, 3), (2, 0)])
def test_beam_rejects_impossible_sizes(beam, num_best):
    with pytest.raises(ValueError, match="expected 1 <= num_best <= beam"):
        prefix_beam(torch.zeros(2, 3), beam, num_best)


def test_decode_batches_both_ways():
    log_probs = random_log_probs(16, 4, 3).view(2, 8, 4)
    lens = torch.tensor([5, 8])
    assert [h.ids for h in decode(log_probs, lens)] == [h.ids for h in greedy(log_probs, lens)]
    beam = decode(log_probs, lens, beam=50)
    assert beam[0] == prefix_beam(log_probs[0, :5], 50)[0]


def test_spell_turns_bars_into_single_spaces():
    assert spell([1, 2, 3, 3, 2, 1], ["<pad>", "|", "A", "B"]) == "ABBA"
    assert spell([2, 1, 1, 3], ["<pad>", "|", "A", "B"]) == "A B"
