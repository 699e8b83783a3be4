"""Signs that a representation collapses: its spread, its rank and the likeness of its frames.

They are read off sums over context frames, which add up over micro-batches and ranks as all logs
do, so that no frame is kept. An objective logs `moments` at evaluation only, because of the D x D
matrix, and adds `health` to its summary. What is measured is every valid frame of the pass that
the loss saw: where the objective masks, with the mask, hidden frames and visible ones alike.

But for `std_l2` no level is healthy in itself: compare with earlier values of the same run, random
weights at step 0 included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.models.blocks.quantize import perplexity
from speechssl.objectives.base import Alarm
from speechssl.types import Frames, Sum

#: Of discrete targets, by `codes_in_use`.
DEGENERATE = Alarm(
    "top_code_share", "most targets are one and the same: labels degenerate", high=0.6
)


@torch.no_grad()
def moments(c: Frames) -> dict[str, Sum]:
    """Sums over the valid frames of `c` (B, T, D), each row an utterance of its own; float64.

    With u = c / |c|: context_sum (D,) of c; context_outer (D, D) of c c'; context_unit (2, D) of u
    and its squares; context_same (1,) of u'u over all ordered pairs of frames of one utterance,
    counted in such pairs, a frame with itself included. The first three are counted in frames.
    """
    # Single precision would lose the small singular values in the square of the large ones.
    x = c.x.double().masked_fill(c.pad[:, :, None], 0.0)
    unit = F.normalize(x, dim=-1, eps=1e-8)
    per_row = unit.sum(1)
    flat, num_frames = x.flatten(0, 1), c.lens.sum()
    return {
        "context_sum": Sum(flat.sum(0), num_frames),
        "context_outer": Sum(flat.T @ flat, num_frames),
        "context_unit": Sum(torch.stack([per_row.sum(0), unit.square().sum((0, 1))]), num_frames),
        "context_same": Sum(per_row.square().sum()[None], c.lens.square().sum()),
    }


def health(sums: Mapping[str, Sum]) -> dict[str, float]:
    """Scalars from reduced `moments`; nothing without them. NaN where the frames are not finite.

    std_l2: mean over dimensions of the deviation of u over frames; healthy near 1 / sqrt(D), which
    stands beside it as std_l2_healthy, and 0 where all frames are one. arXiv 2011.10566, sec. 4.1.
    mean_cos: mean cosine over all pairs of frames of different utterances; 1 where all are one.
    Left out where there is one utterance.
    rankme, rankme_centred: effective rank, of D; see `effective_rank`. Centred is the rank about
    the mean frame, for a large common mean hides the rest. Left out below 2 D frames, which would
    bound it by their number.
    """
    if "context_outer" not in sums:
        return {}
    (total, count), outer = sums["context_sum"], sums["context_outer"].total.double()
    unit, unit_squares = sums["context_unit"].total.double()
    same_cos, same_pairs = (float(value) for value in sums["context_same"])
    n, dim = float(count), len(total)
    found: dict[str, float] = {}
    if n >= 2:
        variance = (unit_squares - unit.square() / n).clamp_min(0.0) / (n - 1)
        found = {"std_l2": float(variance.sqrt().mean()), "std_l2_healthy": dim**-0.5}
    if n * n > same_pairs:
        found["mean_cos"] = (float(unit.square().sum()) - same_cos) / (n * n - same_pairs)
    if n >= 2 * dim:
        found["rankme"] = effective_rank(outer)
        found["rankme_centred"] = effective_rank(outer - torch.outer(total, total).double() / n)
    return found


@torch.no_grad()
def squares(x: Tensor) -> Tensor:
    """Sums over the rows of x (M, D) and over their squares, (2, D) float64; see `deviation`."""
    x = x.double()
    return torch.stack([x.sum(0), x.square().sum(0)])


def deviation(sums: Sum) -> float:
    """Mean over channels of sqrt(variance + 1e-6) over n rows, from their `squares`.

    Of regression targets and predictions, 0.001 means that all are one. Source: fairseq's data2vec
    (which calls it target_var and pred_var). NaN below two rows.
    """
    (total, of_squares), n = sums.total.double(), float(sums.count)
    if n < 2:
        return math.nan
    variance = (of_squares - total.square() / n).clamp_min(0.0) / (n - 1)
    return float((variance + 1e-6).sqrt().mean())


def codes_in_use(sums: Mapping[str, Sum]) -> dict[str, float]:
    """What discrete targets are like, from `code_hist` (G, V), their counts; means over G groups.

    code_ppl: perplexity, of V; code_usage: share of codes that occur in the window summed over;
    top_code_share: of the commonest code, which is what an accuracy has to beat.
    """
    if "code_hist" not in sums:
        return {}
    hist = sums["code_hist"].total.double()
    return {
        "code_ppl": perplexity(hist) / len(hist),
        "code_usage": float((hist > 0).double().mean()),
        "top_code_share": float((hist.amax(-1) / hist.sum(-1).clamp(min=1)).mean()),
    }


def effective_rank(gram: Tensor) -> float:
    """RankMe of a matrix Z (n, D) from Z'Z (D, D): exp of the entropy of its singular values.

    They are the roots of the eigenvalues of Z'Z, normalised to sum 1. Source: arXiv 2210.02885,
    eq. 1.
    """
    if not bool(gram.isfinite().all()):
        return math.nan  # the solver would raise, and a diverged run is to be reported as one
    sigma = torch.linalg.eigvalsh(gram.double().cpu()).clamp_min(0.0).sqrt()
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))
