"""Discrete targets: the Gumbel product quantiser, and random projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantiser returns for M frames."""

    vectors: Tensor  # (M, d) concatenated codebook rows; gradient straight through
    codes: Tensor  # (M, G) int64, the rows chosen
    probs: Tensor  # (M, G, V) softmax of the logits: no noise, no temperature


class GumbelQuantizer(nn.Module):
    """Product quantiser with straight-through Gumbel softmax (arXiv 2006.11477, section 2, eq. 1).

    Runs in fp32: at the published `init_std` 1 the logits of layer-normed input have a standard
    deviation near sqrt(C), too wide for half precision. That is a saturated softmax: the Gumbel
    noise (1.28) rarely changes a choice and the diversity term has next to no gradient, so few
    updates collapse it. An `init_std` near 2 / sqrt(C) lets all codes be tried from the start.
    """

    def __init__(
        self, channels: int, groups: int, codes: int, dim: int, init_std: float = 1.0
    ) -> None:
        super().__init__()
        self.groups, self.codes = groups, codes
        self.codevectors = nn.Parameter(torch.rand(1, groups * codes, dim // groups))
        self.weight_proj = nn.Linear(channels, groups * codes)
        nn.init.normal_(self.weight_proj.weight, mean=0.0, std=init_std)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(
        self, x: Tensor, temperature: float = 1.0, noise: Tensor | None = None
    ) -> Quantized:
        """X (M, C); noise (M, G, V) Gumbel samples while training, None for a plain argmax."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.weight_proj(x.float()).unflatten(-1, (self.groups, self.codes))
            probs = logits.softmax(-1)
            if noise is None:
                codes = logits.argmax(-1)
                choice = F.one_hot(codes, self.codes).to(logits.dtype)
            else:
                soft = ((logits + noise) / temperature).softmax(-1)
                codes = soft.argmax(-1)
                hard = F.one_hot(codes, self.codes).to(logits.dtype)
                choice = hard + soft - soft.detach()
            books = self.codevectors.view(self.groups, self.codes, -1)
            vectors = torch.einsum("mgv,gvd->mgd", choice, books).flatten(1)
        return Quantized(vectors, codes, probs)


class RandomQuantizer(nn.Module):
    """Codes of vectors by random projections that never learn (arXiv 2202.01855, section 3.1).

    Each of `books` codebooks projects to `code_dim` dimensions and names the nearest of `codes`
    directions. Both are buffers: they are saved with the model, and drawn from their own seed.
    Differs: several codebooks; the paper has one.
    """

    projection: Tensor  # (K, n, d)
    codebook: Tensor  # (K, V, d), rows of length 1

    def __init__(self, dim: int, books: int, codes: int, code_dim: int, seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        bound = math.sqrt(6 / (dim + code_dim))  # Xavier's
        projection = torch.rand(books, dim, code_dim, generator=source, device="cpu")
        codebook = torch.randn(books, codes, code_dim, generator=source, device="cpu")
        self.register_buffer("projection", (2 * projection - 1) * bound)
        self.register_buffer("codebook", F.normalize(codebook, dim=-1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """X (M, n) -> codes (M, K) int64, always in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            # Of directions of equal length the nearest has the largest product; the length of the
            # projected vector plays no part.
            projected = torch.einsum("mn,knd->kmd", x.float(), self.projection)
            return (projected @ self.codebook.transpose(1, 2)).argmax(-1).T


def gumbel_noise(
    seeds: Sequence[int], counts: Sequence[int], shape: tuple[int, ...], like: Tensor
) -> Tensor:
    """Standard Gumbel samples (sum of counts, *shape), each utterance from its own seed.

    So the noise of an utterance is the same alone, in any batch and on any rank.
    """
    rows = []
    for seed, count in zip(seeds, counts, strict=True):
        source = torch.Generator(device=like.device).manual_seed(seed)
        empty = torch.empty((count, *shape), device=like.device, dtype=torch.float32)
        rows.append(empty.exponential_(generator=source))
    exponential = torch.cat(rows).clamp_min_(torch.finfo(torch.float32).tiny)
    return -exponential.log_()


def perplexity(counts: Tensor) -> float:
    """Sum over groups of exp(entropy) of counts (G, V): G when collapsed, G * V when uniform."""
    p = counts.double() / counts.double().sum(-1, keepdim=True).clamp_min(1e-9)
    return float((-(p * (p + 1e-7).log()).sum(-1)).exp().sum())
