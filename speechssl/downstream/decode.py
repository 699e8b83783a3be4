"""CTC decoding without a language model: best path, and prefix beam search.

Class 0 is the blank. Source: Graves et al. 2006 (best path), Hannun et al. 2014, arXiv 1408.2873
(prefix search, algorithm 1, here without its language model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

BLANK = 0


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A decoded token sequence; `score` is a natural log probability.

    `frames` holds the first frame of each token on the best path, and is empty where the score
    sums over alignments.
    """

    ids: tuple[int, ...]
    score: float
    frames: tuple[int, ...] = ()


def collapse(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame-wise path (T,) -> token ids and the frame each starts at; repeats merge."""
    first = np.ones(len(path), dtype=bool)
    first[1:] = path[1:] != path[:-1]
    frames = np.flatnonzero(first & (path != BLANK))
    return path[frames], frames


def greedy(logits: Tensor, lens: Tensor | None = None) -> list[Hypothesis]:
    """Best path of each utterance: logits or log-probabilities (B, T, V), lens (B,) frames.

    Also takes one utterance as (T, V). The score is that of the path alone.
    """
    logits = logits[None] if logits.ndim == 2 else logits
    best, path = logits.float().log_softmax(-1).max(-1)  # (B, T) each
    best_np, path_np = best.cpu().numpy(), path.cpu().numpy()
    sizes = [path_np.shape[1]] * len(path_np) if lens is None else lens.tolist()
    found = []
    for scores, row, size in zip(best_np, path_np, sizes, strict=True):
        ids, frames = collapse(row[:size])
        score = float(scores[:size].sum(dtype=np.float64))
        found.append(Hypothesis(tuple(ids.tolist()), score, tuple(frames.tolist())))
    return found


def prefix_beam(
    log_probs: Tensor | np.ndarray, beam: int = 16, num_best: int = 1
) -> list[Hypothesis]:
    """The `num_best` most probable token sequences of log_probs (T, V), best first.

    A score sums over all alignments of its sequence and is exact as long as no prefix was pruned;
    with pruning it is a lower bound. Cost is O(T * beam * V).
    """
    if beam < 1 or not 1 <= num_best <= beam:
        raise ValueError(f"got beam {beam} and num_best {num_best}, expected 1 <= num_best <= beam")
    if isinstance(log_probs, Tensor):
        log_probs = log_probs.detach().float().cpu().numpy()
    steps = log_probs.astype(np.float64)
    num_classes = steps.shape[1]
    # Prefixes are nodes of a tree, so that one reached again by extension is known to be the same.
    parents, lasts, children = [-1], [BLANK], dict[tuple[int, int], int]()
    nodes = np.zeros(1, dtype=np.int64)
    blank_p, token_p = np.zeros(1), np.full(1, -np.inf)  # ends in blank / in its last token
    for row in steps:
        size = len(nodes)
        last = np.array([lasts[n] for n in nodes])
        total = np.logaddexp(blank_p, token_p)
        stay_blank = total + row[BLANK]
        # The empty prefix has no last token to repeat; its token_p is -inf, so BLANK is harmless.
        stay_token = token_p + row[last]
        extend = total[:, None] + row[None, :]  # (size, V)
        here = np.arange(size)
        extend[here, last] = blank_p + row[last]  # the same token again needs a blank between
        extend[:, BLANK] = -np.inf
        position = {int(n): i for i, n in enumerate(nodes)}
        for i, node in enumerate(nodes):
            source = position.get(parents[node])
            if source is not None:  # "ab" is on the beam beside "a": one and the same prefix
                stay_token[i] = np.logaddexp(stay_token[i], extend[source, last[i]])
                extend[source, last[i]] = -np.inf
        scores = np.concatenate([np.logaddexp(stay_blank, stay_token), extend.ravel()])
        keep = np.argsort(-scores, kind="stable")[:beam]
        keep = keep[np.isfinite(scores[keep])]
        new = []
        for k in keep:
            if k < size:
                new.append((nodes[k], stay_blank[k], stay_token[k]))
                continue
            source, token = divmod(int(k) - size, num_classes)
            key = (int(nodes[source]), token)
            if key not in children:
                children[key] = len(parents)
                parents.append(key[0])
                lasts.append(token)
            new.append((children[key], -np.inf, extend[source, token]))
        nodes = np.array([n for n, _, _ in new], dtype=np.int64)
        blank_p = np.array([b for _, b, _ in new])
        token_p = np.array([t for _, _, t in new])
    total = np.logaddexp(blank_p, token_p)
    order = np.argsort(-total, kind="stable")[:num_best]
    return [Hypothesis(_tokens(int(nodes[i]), parents, lasts), float(total[i])) for i in order]


def _tokens(node: int, parents: list[int], lasts: list[int]) -> tuple[int, ...]:
    ids: list[int] = []
    while parents[node] >= 0:
        ids.append(lasts[node])
        node = parents[node]
    return tuple(reversed(ids))


def spell(ids: Sequence[int], classes: Sequence[str]) -> str:
    """Token ids -> text: the word bar `|` becomes a space, outer and double spaces go."""
    return " ".join("".join(classes[i] for i in ids).replace("|", " ").split())


def decode(log_probs: Tensor, lens: Tensor, beam: int = 1) -> list[Hypothesis]:
    """One hypothesis per utterance of log_probs (B, T, V): greedy for beam 1, else prefix beam."""
    if beam == 1:
        return greedy(log_probs, lens)
    rows = log_probs.detach().float().cpu()
    return [prefix_beam(row[:size], beam)[0] for row, size in zip(rows, lens.tolist(), strict=True)]
