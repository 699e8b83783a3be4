"""The wav2vec 2.0 loss, slowly: one masked frame at a time, in float64.

Written from arXiv 2006.11477, sections 2 and 3.2, equations 1 to 4, not from the library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Parts(NamedTuple):
    """Terms of the loss, each summed over masked frames, and what the metrics are made of."""

    total: Tensor
    contrastive: Tensor
    diversity: Tensor
    penalty: Tensor
    count: int
    correct: int
    codes: list[list[int]]
    quantized: list[Tensor]


def quantize(
    frame: Tensor, weights: Mapping[str, Tensor], noise: Tensor | None, temperature: float
) -> tuple[Tensor, list[int], list[Tensor]]:
    """One frame (C,) -> its vector (d,), its code per group, its softmax per group.

    weights: "logits" (G V, C), "logits_bias" (G V,), "codebook" (G, V, d / G). With noise (G, V)
    the choice is a straight-through Gumbel softmax; without, an argmax.
    """
    groups, size, _ = weights["codebook"].shape
    every = weights["logits"] @ frame + weights["logits_bias"]
    vectors, codes, softmaxes = [], [], []
    for group in range(groups):
        logits = every[group * size : (group + 1) * size]
        softmaxes.append(torch.exp(logits - logits.max()) / torch.exp(logits - logits.max()).sum())
        book = weights["codebook"][group]
        if noise is None:
            code = int(logits.argmax())
            vectors.append(book[code])
        else:
            noisy = (logits + noise[group]) / temperature
            soft = torch.exp(noisy - noisy.max()) / torch.exp(noisy - noisy.max()).sum()
            code = int(soft.argmax())
            # Value: the row chosen. Gradient: the row chosen to the book, the soft mix to logits.
            straight = torch.zeros((), dtype=torch.float64)
            for other in range(size):
                straight = straight + (soft[other] - soft[other].detach()) * book[other]
            vectors.append(book[code] + straight)
        codes.append(code)
    return torch.cat(vectors), codes, softmaxes


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of two vectors."""
    return (a @ b) / (torch.sqrt(a @ a) * torch.sqrt(b @ b))


def loss(
    z: Sequence[Tensor],
    u: Sequence[Tensor],
    c: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    noise: Tensor | None,
    negatives: Sequence[Sequence[Sequence[int]]],
    *,
    frames: Sequence[int],
    temperature: float,
    logit_temperature: float = 0.1,
    diversity_weight: float = 0.1,
    penalty_weight: float = 10.0,
    cross: Sequence[Sequence[int]] | None = None,
) -> Parts:
    """All terms for utterances b with n_b masked frames each.

    z[b] (T_b, C_padded) raw convolution output, of which the first frames[b] rows are real;
    u[b] (n_b, C) normalised features and c[b] (n_b, D) context at the masked frames; noise
    (sum of n_b, G, V) or None; negatives[b][m] positions among the n_b masked frames; cross, where
    given, for every masked frame places among those of all utterances, -1 for none. weights also
    holds "project_q", "project_q_bias", "project_c", "project_c_bias".

    The feature penalty is the mean of z^2 of an utterance, once per masked frame of it.
    """
    zero = torch.zeros((), dtype=torch.float64)
    contrastive, penalty, count, correct, place = zero, zero, 0, 0, 0
    all_codes: list[list[int]] = []
    all_softmaxes: list[list[Tensor]] = []
    all_vectors: list[Tensor] = []
    all_targets: list[Tensor] = []
    all_guesses: list[Tensor] = []
    for b in range(len(u)):
        for m in range(len(u[b])):
            frame_noise = None if noise is None else noise[place]
            place += 1
            vector, code, softmaxes = quantize(u[b][m], weights, frame_noise, temperature)
            all_targets.append(weights["project_q"] @ vector + weights["project_q_bias"])
            all_guesses.append(weights["project_c"] @ c[b][m] + weights["project_c_bias"])
            all_codes.append(code)
            all_vectors.append(vector)
            all_softmaxes.append(softmaxes)
    for b in range(len(u)):
        for m in range(len(u[b])):
            this = count + m
            others = [count + other for other in negatives[b][m]]
            others += [] if cross is None else [other for other in cross[this] if other >= 0]
            logits = [cosine(all_guesses[this], all_targets[this]) / logit_temperature]
            for other in others:
                if all_codes[other] != all_codes[this]:
                    logits.append(cosine(all_guesses[this], all_targets[other]) / logit_temperature)
            scores = torch.stack(logits)
            contrastive = contrastive - (scores[0] - torch.log(torch.exp(scores).sum()))
            correct += int(all(scores[0].item() > score.item() for score in scores[1:]))
        real = z[b][: frames[b]]
        if len(u[b]):
            penalty = penalty + len(u[b]) * (real**2).sum() / real.numel()
        count += len(u[b])
    groups, size, _ = weights["codebook"].shape
    perplexity = zero
    for group in range(groups):
        entropy = zero
        for v in range(size):
            mean = sum((s[group][v] for s in all_softmaxes), zero) / max(count, 1)
            entropy = entropy - mean * torch.log(mean + 1e-7)
        perplexity = perplexity + torch.exp(entropy)
    diversity = count * (groups * size - perplexity) / (groups * size)
    total = contrastive + diversity_weight * diversity + penalty_weight * penalty
    return Parts(total, contrastive, diversity, penalty, count, correct, all_codes, all_vectors)


def gumbel_temperature(update: int, start: float, end: float, decay: float = 0.999995) -> float:
    """Temperature of an update, by logarithms so that it is not the library's expression."""
    return max(end, math.exp(math.log(start) + update * math.log(decay)))
