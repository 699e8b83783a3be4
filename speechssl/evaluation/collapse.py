"""Signs that a representation collapses: its rank, its spread and the likeness of its frames.

All take Z, (n, d) float: n frames, best from many utterances. The values mean something only
beside earlier values of the same run: alarms are on change, not on the level.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rankme(z: Tensor, *, centre: bool = False) -> float:
    """Effective rank of Z (n, d): exp of the entropy of its normalised singular values.

    `centre` removes the mean first: a large common mean hides the rank of the rest. Needs n >= 2 d
    to be comparable within a run; fewer frames bound the rank by n.
    Source: RankMe, arXiv 2210.02885, eq. 1.
    """
    z = _checked(z)
    if centre:
        z = z - z.mean(0)
    sigma = torch.linalg.svdvals(z)
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def std_l2(z: Tensor) -> float:
    """Mean over dimensions of the deviation over frames of z / |z|; near 1 / sqrt(d) if healthy.

    Source: SimSiam, arXiv 2011.10566, section 4.1.
    """
    unit = torch.nn.functional.normalize(_checked(z), dim=1, eps=1e-8)
    return float(unit.std(0).mean())


def mean_cos(z: Tensor, utterance: Tensor, *, num_pairs: int = 10_000, seed: int = 0) -> float:
    """Mean cosine of random pairs of frames of Z that come from different utterances.

    `utterance` (n,) int64 numbers each frame's utterance. The pairs depend on `seed` only.
    Raises ValueError when all frames are of one utterance.
    """
    z, utterance = _checked(z), utterance.cpu()
    if len(utterance) != len(z):
        raise ValueError(f"utterance has {len(utterance)} entries, expected one a frame, {len(z)}")
    if len(utterance) == 0 or bool((utterance == utterance[0]).all()):
        raise ValueError("mean_cos needs frames of at least two utterances, got one")
    rng = torch.Generator().manual_seed(seed)
    order = torch.argsort(utterance, stable=True)
    _, which, sizes = torch.unique(utterance[order], return_inverse=True, return_counts=True)
    first = torch.randint(len(z), (num_pairs,), generator=rng)
    # The partner is drawn among the frames outside the first one's utterance: in sorted order,
    # a walk of (rest of the utterance + draw) steps around the circle cannot end inside it.
    size = sizes[which[first]]
    step = (torch.rand(num_pairs, generator=rng, dtype=torch.float64) * (len(z) - size)).long()
    end = torch.cumsum(sizes, 0)[which[first]]
    second = (end + step) % len(z)
    a, b = z[order[first].to(z.device)], z[order[second].to(z.device)]
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1, eps=1e-8).mean())


def summary(z: Tensor, utterance: Tensor) -> dict[str, float]:
    """All of them for frames Z (n, d) of the utterances numbered in `utterance` (n,).

    The rank is left out where n < 2 d, the cosine where there is only one utterance.
    """
    found = {"std_l2": std_l2(z), "std_l2_healthy": z.shape[1] ** -0.5}
    if len(z) >= 2 * z.shape[1]:
        found["rankme"] = rankme(z)
        found["rankme_centred"] = rankme(z, centre=True)
    if bool((utterance != utterance[0]).any()):
        found["mean_cos"] = mean_cos(z, utterance)
    return found


def _checked(z: Tensor) -> Tensor:
    if z.ndim != 2 or z.shape[0] < 2:
        raise ValueError(f"got embeddings of shape {tuple(z.shape)}, expected (n >= 2, d)")
    z = z.detach().float()
    if not bool(torch.isfinite(z).all()):
        raise ValueError("embeddings hold NaN or Inf; look for the first non-finite loss")
    return z
