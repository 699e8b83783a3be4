"""Codebooks that follow what they name, by moving average."""

from __future__ import annotations

import torch
import torch.distributed as td
import torch.nn.functional as F
from torch import Tensor, nn

#: Updates without a vector near it after which a code counts as dead: the others have moved on.
DEAD_AFTER = 1000


class MovingCentroids(nn.Module):
    """K codebooks whose codes are moving averages of the vectors they are nearest to.

    Source: arXiv 2305.10005, section 3. All are fp32 buffers, saved with the model,
    no parameters. What is seen is added up over the micro-batches of an update and, in `update`,
    over the ranks, so that how an update is split changes nothing.
    """

    sums: Tensor  # (K, V, D)
    counts: Tensor  # (K, V)
    idle: Tensor  # (K, V) int64, updates since a code was last the nearest
    seen_sums: Tensor  # (K, V, D), of the update that is under way
    seen_counts: Tensor  # (K, V)

    def __init__(self, books: int, codes: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        start = torch.randn(books, codes, dim, generator=source, device="cpu")
        # Like the vectors: zero mean and unit variance of each channel, here over the codes.
        start = F.instance_norm(start.transpose(1, 2)).transpose(1, 2).contiguous()
        self.register_buffer("sums", start)
        self.register_buffer("counts", torch.ones(books, codes))
        self.register_buffer("idle", torch.zeros(books, codes, dtype=torch.long))
        self.register_buffer("seen_sums", torch.zeros_like(start), persistent=False)
        self.register_buffer("seen_counts", torch.zeros(books, codes), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """X (K, M, D) -> codes (M, K) int64, the nearest in each codebook; never below fp32."""
        with torch.autocast(x.device.type, enabled=False):
            centroids = self.sums / self.counts[..., None]
            inner = x.to(centroids.dtype) @ centroids.transpose(1, 2)  # (K, M, V)
            return (centroids.square().sum(-1)[:, None] - 2 * inner).argmin(-1).T

    @torch.no_grad()
    def collect(self, x: Tensor, codes: Tensor) -> None:
        """Add vectors x (K, M, D) to what their codes (M, K) have seen in this update."""
        with torch.autocast(x.device.type, enabled=False):
            for book, (vectors, chosen) in enumerate(zip(x, codes.T, strict=True)):
                # A product and no scattered addition, whose order differs from run to run.
                hot = F.one_hot(chosen, self.counts.shape[1]).to(self.sums.dtype)  # (M, V)
                self.seen_sums[book] += hot.T @ vectors.to(hot.dtype)
                self.seen_counts[book] += hot.sum(0)

    @torch.no_grad()
    def clear(self) -> None:
        """Forget what was seen since the last update, if that was given up."""
        self.seen_sums.zero_()
        self.seen_counts.zero_()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the codes that were seen on any rank; the others stay. Called by all ranks."""
        if td.is_initialized():
            td.all_reduce(self.seen_sums)
            td.all_reduce(self.seen_counts)
        hit = self.seen_counts > 0
        self.sums.copy_(
            torch.where(hit[..., None], torch.lerp(self.seen_sums, self.sums, decay), self.sums)
        )
        self.counts.copy_(
            torch.where(hit, torch.lerp(self.seen_counts, self.counts, decay), self.counts)
        )
        self.idle.copy_(torch.where(hit, 0, self.idle + 1))
        self.clear()

    def num_dead(self) -> Tensor:
        """How many codes, of all K V, no vector was near for `DEAD_AFTER` updates."""
        return (self.idle >= DEAD_AFTER).sum()
