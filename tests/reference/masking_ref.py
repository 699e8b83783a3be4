"""Span masks, slowly: numbers of spans and the frames they hide, and measured coverages.

Written from arXiv 2006.11477, section 3.2 and appendix A, not from the library.
"""

from __future__ import annotations

#: (prob, frames) -> mean and standard deviation (over utterances) of the share of frames hidden
#: by spans of ten frames, at least two spans: measured on draws of fairseq's sampler, so that the
#: means themselves are good to about 0.006 only.
COVERAGE = {
    (0.65, 99): (0.492, 0.069),
    (0.65, 200): (0.492, 0.044),
    (0.65, 400): (0.493, 0.031),
    (0.65, 781): (0.488, 0.023),
    (0.65, 49): (0.513, 0.095),
}


def num_spans(frames: int, prob: float, length: int, min_masks: int, u: float) -> int:
    """Spans of one utterance: the expected number rounded down or up by u in [0, 1)."""
    expected = prob * frames / length
    whole = 0
    while whole + 1 <= expected + u:
        whole += 1
    return max(whole, min_masks)


def mask_from(starts: list[int], frames: int, length: int) -> list[bool]:
    """Hide [s, s + length) for every start, within the utterance."""
    hidden = [False] * frames
    for start in starts:
        for frame in range(start, start + length):
            if frame < frames:
                hidden[frame] = True
    return hidden


def runs(hidden: list[bool]) -> list[int]:
    """Lengths of the runs of hidden frames."""
    found, current = [], 0
    for value in [*hidden, False]:
        if value:
            current += 1
        elif current:
            found.append(current)
            current = 0
    return found


def expected_coverage(prob: float, length: int) -> float:
    """Share hidden far from the ends when every frame starts a span with chance prob / length."""
    visible = 1.0
    for _ in range(length):
        visible *= 1 - prob / length
    return 1 - visible


def exact_coverage(prob: float, frames: int, length: int, min_masks: int) -> float:
    """Expected share of hidden frames of one utterance: distinct starts among the first
    frames - length, no frame left out (no cap on the coverage).
    """
    places = frames - length
    floor = num_spans(frames, prob, length, min_masks, 0.0)
    chance_of_more = prob * frames / length - int(prob * frames / length)
    if int(prob * frames / length) + 1 <= min_masks:
        chance_of_more = 0.0
    share = 0.0
    for spans, weight in ((floor, 1 - chance_of_more), (floor + 1, chance_of_more)):
        for frame in range(frames):
            covering = sum(1 for start in range(places) if start <= frame < start + length)
            visible = 1.0
            for drawn in range(spans):
                visible *= max(places - covering - drawn, 0) / (places - drawn)
            share += weight * (1 - visible) / frames
    return share
