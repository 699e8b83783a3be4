"""Properties of the plan, over random corpora and numbers of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.data.planner import Planner, split

lengths = st.lists(st.integers(400, 16000), min_size=1, max_size=120).map(np.array)
worlds = st.integers(1, 5)


def planner(lens: np.ndarray, seed: int = 1, bucket_updates: int = 4) -> Planner:
    return Planner(lens, 48000, 32000, bucket_updates=bucket_updates, seed=seed)


@settings(max_examples=60, deadline=None)
@given(lengths, worlds, st.integers(0, 3), st.integers(1, 6))
def test_every_utterance_comes_exactly_once_an_epoch(lens, world, epoch, bucket):
    plan = planner(lens, bucket_updates=bucket)
    first = epoch * plan.updates_per_epoch
    seen = [
        int(i)
        for step in range(first, first + plan.updates_per_epoch)
        for rank in plan.micro_batches(step, world)
        for part in rank
        for i in part
    ]
    assert sorted(seen) == list(range(len(lens)))


@settings(max_examples=60, deadline=None)
@given(lengths, worlds)
def test_ranks_get_equally_many_micro_batches_within_the_budget(lens, world):
    plan = planner(lens)
    for step in range(plan.updates_per_epoch):
        ranks = plan.micro_batches(step, world)
        assert len(ranks) == world
        assert len({len(rank) for rank in ranks}) == 1
        for rank in ranks:
            for part in rank:
                assert len(part) == 0 or lens[part].max() * len(part) <= plan.batch


@settings(max_examples=40, deadline=None)
@given(lengths, worlds)
def test_an_update_is_the_same_set_for_any_number_of_ranks(lens, world):
    plan = planner(lens)
    for step in range(plan.updates_per_epoch):
        parts = [part for rank in plan.micro_batches(step, world) for part in rank]
        assert sorted(np.concatenate(parts)) == sorted(plan.update(step))


@settings(max_examples=40, deadline=None)
@given(lengths)
def test_no_update_is_empty(lens):
    plan = planner(lens)
    assert all(len(plan.update(step)) for step in range(2 * plan.updates_per_epoch))


def test_update_k_needs_no_replay():
    lens = np.random.default_rng(0).integers(400, 16000, 500)
    straight = planner(lens)
    walked = [straight.update(step) for step in range(3 * straight.updates_per_epoch)]
    for step in (0, 7, straight.updates_per_epoch, len(walked) - 1):
        assert np.array_equal(planner(lens).update(step), walked[step])


def test_epochs_and_seeds_differ():
    lens = np.random.default_rng(0).integers(400, 16000, 500)
    plan, other = planner(lens), planner(lens, seed=2)
    assert not np.array_equal(plan.update(0), plan.update(plan.updates_per_epoch))
    assert not np.array_equal(plan.update(0), other.update(0))


def test_sorting_pools_by_length_saves_padding():
    lens = np.random.default_rng(0).integers(400, 16000, 2000)
    bucketed = planner(lens, bucket_updates=16).padding_share()
    assert bucketed < 0.05
    assert planner(lens, bucket_updates=1).padding_share() > 2.5 * bucketed


def test_updates_hold_about_what_was_asked_for():
    lens = np.random.default_rng(0).integers(400, 16000, 2000)
    plan = planner(lens)
    sizes = [int(lens[plan.update(step)].sum()) for step in range(plan.updates_per_epoch)]
    assert np.mean(sizes) == pytest.approx(48000, rel=0.02)
    assert max(sizes) < 48000 + 2 * 16000


def test_ranks_get_about_equal_work():
    lens = np.random.default_rng(0).integers(8000, 16000, 64)
    order = np.argsort(-lens, kind="stable")
    loads = [
        sum(int(lens[p].max()) * len(p) for p in rank) for rank in split(order, lens, 64000, 4)
    ]
    assert max(loads) < 1.2 * min(loads)


def test_an_utterance_over_the_budget_is_refused():
    with pytest.raises(ValueError, match="longest utterance has 64000"):
        Planner(np.array([64000]), 96000, 32000)
