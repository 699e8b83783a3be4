"""Span masks: coverage, padding, run lengths, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest

from speechssl.objectives.masking import MAX_COVERAGE, ChannelMask, SpanMask
from speechssl.rng import generator
from tests.reference import masking_ref


def draws(mask: SpanMask, frames: int, number: int) -> np.ndarray:
    return np.stack([mask.draw_row(frames, generator("cover", i)) for i in range(number)])


@pytest.mark.parametrize(("prob", "frames"), list(masking_ref.COVERAGE))
def test_coverage_is_the_published_samplers(prob: float, frames: int) -> None:
    number = 1000
    mean, deviation = masking_ref.COVERAGE[prob, frames]
    share = draws(SpanMask(prob, 10), frames, number).mean(1)
    exact = masking_ref.exact_coverage(prob, frames, 10, 2)
    assert share.mean() == pytest.approx(exact, abs=3 * deviation / np.sqrt(number))
    assert share.mean() == pytest.approx(mean, abs=0.01)
    assert share.std() == pytest.approx(deviation, rel=0.15)


def test_long_utterances_reach_the_closed_form() -> None:
    expected = masking_ref.expected_coverage(0.65, 10)
    assert draws(SpanMask(0.65, 10), 5000, 50).mean() == pytest.approx(expected, abs=0.006)


def test_runs_are_whole_spans_unless_merged() -> None:
    mask = SpanMask(0.65, 10)
    lengths: list[int] = []
    for row in draws(mask, 781, 200):
        lengths += masking_ref.runs(row.tolist())
    assert min(lengths) >= 10
    assert np.mean(lengths) == pytest.approx(14.6, abs=0.4)
    assert not draws(mask, 781, 200)[:, -1].any()  # as fairseq: the last frame stays


@pytest.mark.parametrize("u", [0.0, 0.3, 0.999])
def test_number_of_spans(u: float) -> None:
    class Fixed:
        """Span starts far apart, so that runs count spans."""

        def random(self) -> float:
            return u

        def choice(self, places: int, size: int, replace: bool) -> np.ndarray:
            assert not replace
            assert size <= places
            return np.arange(size) * 30

    for frames in (100, 157, 400, 781):
        row = SpanMask(0.2, 10).draw_row(frames, Fixed())  # type: ignore[arg-type]
        spans = masking_ref.num_spans(frames, 0.2, 10, 2, u)
        assert row.tolist() == masking_ref.mask_from([30 * i for i in range(spans)], frames, 10)


def test_padding_is_never_masked_and_short_rows_are_left_alone() -> None:
    lens = np.array([100, 0, 1, 19, 20, 57])
    mask = SpanMask(0.8, 10).draw(lens, [generator(i) for i in range(6)])
    assert mask.shape == (6, 100)
    for row, length in enumerate(lens):
        assert not mask[row, length:].any()
    assert mask.any(1).tolist() == [True, False, False, False, True, True]


def test_masks_of_an_utterance_do_not_depend_on_its_batch() -> None:
    spans = SpanMask()
    alone = spans.draw(np.array([80]), [generator(7, "a")])
    mixed = spans.draw(np.array([120, 80, 50]), [generator(7, k) for k in "bac"])
    np.testing.assert_array_equal(mixed[1, :80], alone[0])
    other = spans.draw(np.array([80]), [generator(8, "a")])
    assert (other != alone).any()


@pytest.mark.parametrize("frames", [20, 25, 33, 49, 200])
def test_something_is_left_to_predict_from(frames: int) -> None:
    hidden = draws(SpanMask(1.0, 10, min_masks=8), frames, 50)
    assert hidden.mean(1).max() <= MAX_COVERAGE
    assert hidden.any(1).all()


@pytest.mark.parametrize(("prob", "coverage"), [(0.1, 0.097), (0.25, 0.23), (0.5, 0.40)])
def test_channel_masks(prob: float, coverage: float) -> None:
    rngs = [generator("channel", i) for i in range(1500)]
    hidden = ChannelMask(prob, 64).draw(768, rngs)
    assert hidden.shape == (1500, 768)
    assert hidden.mean() == pytest.approx(coverage, abs=0.012)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="prob"):
        SpanMask(prob=1.5)
    with pytest.raises(ValueError, match="channel_mask: got prob 0.5, length 0"):
        ChannelMask(prob=0.5, length=0)
