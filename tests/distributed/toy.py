"""A tiny objective and its data for engine tests, with everything that makes engines disagree.

A weight-normed convolution, a layer unused in every other update, dropout, uneven lengths and
uneven numbers of targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from speechssl.geometry import FrameGeometry
from speechssl.objectives.base import Objective
from speechssl.types import Batch, Loss, Sum

GEOMETRY = FrameGeometry((10, 4), (5, 2))


class ToyBackbone(nn.Module):
    geometry = GEOMETRY
    dim = 8

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(1, 8, 10, stride=5))
        self.pool = nn.Conv1d(8, 8, 4, stride=2)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("seen", torch.zeros(()))
        self.skip = False

    def begin_step(self, seed: int, step: int) -> None:
        self.skip = step % 2 == 1

    def forward(self, wave: Tensor, wave_lens: Tensor) -> Tensor:
        x = self.pool(torch.tanh(self.conv(wave[:, None]))).transpose(1, 2)
        for i, layer in enumerate(self.layers):
            if not (i == 1 and self.skip and self.training):
                x = x + torch.tanh(layer(self.dropout(x)))
        return x


class Toy(Objective):
    """Predict the mean absolute amplitude of a fixed window at masked frames."""

    @dataclass(frozen=True)
    class Config:
        dropout: float = 0.0

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(ToyBackbone(dropout), self.Config(dropout))  # type: ignore[arg-type]
        self.head = nn.Linear(8, 1)
        self.dtype_seen: torch.dtype | None = None

    def forward(self, batch: Batch) -> Loss:
        x = self.backbone(batch.wave, batch.wave_lens)[batch.mask]
        guess = self.head(x)
        self.dtype_seen = guess.dtype
        starts = torch.nonzero(batch.mask)[:, 1] * GEOMETRY.hop
        rows = torch.nonzero(batch.mask)[:, 0]
        target = torch.stack(
            [batch.wave[r, s : s + 25].abs().mean() for r, s in zip(rows, starts, strict=True)]
        )
        with torch.autocast(batch.wave.device.type, enabled=False):
            error = (guess.float()[:, 0] - target) ** 2
        count = torch.tensor(len(error))
        bins = torch.histc(error.detach(), 4, 0, 1)
        return Loss(
            error.sum(),
            count,
            {"close": Sum((error < 0.01).sum(), count), "bins": Sum(bins, count)},
        )

    def after_step(self, progress) -> None:
        self.backbone.seen += 1

    def chance(self) -> dict[str, float]:
        return {"loss": 1.0}


def build(dropout: float = 0.0, seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    return Toy(dropout)


def utterance(key: int, *, bad: bool = False) -> tuple[str, Tensor, list[int]]:
    """An id, a wave of its own length, and masked frames: a varying number."""
    generator = torch.Generator().manual_seed(1000 + key)
    samples = 80 + 10 * (key * 7 % 11)
    wave = torch.randn(samples, generator=generator) * (0.3 + 0.1 * (key % 5))
    if bad:
        wave[3] = torch.nan
    frames = GEOMETRY.frames(samples)
    return f"utt{key}", wave, list(range(key % 3, frames, 1 + key % 3))


def collate(items: Sequence[tuple[str, Tensor, list[int]]], *, filler: bool = False) -> Batch:
    longest = max(len(wave) for _, wave, _ in items)
    waves = torch.zeros(len(items), longest)
    lens = torch.tensor([len(wave) for _, wave, _ in items])
    mask = torch.zeros(len(items), GEOMETRY.frames(longest), dtype=torch.bool)
    for i, (_, wave, hidden) in enumerate(items):
        waves[i, : len(wave)] = wave
        mask[i, hidden] = True
    num_targets = 0 if filler else int(mask.sum())
    ids = [name for name, _, _ in items]
    return Batch(ids, waves, lens, GEOMETRY.frames(lens), num_targets, mask=mask)


@dataclass
class ToyData:
    """Five utterances an update, split over ranks and micro-batches; uneven, with fillers."""

    rank: int = 0
    world: int = 1
    micro: int = 1
    bad_at: tuple[int, ...] = ()
    before: Callable[[int], None] | None = None

    def update(self, step: int) -> list[Batch]:
        keys = range(5 * step, 5 * step + 5)
        items = [utterance(k, bad=step in self.bad_at and k % 5 == 4) for k in keys]
        parts = [items[i :: self.world * self.micro] for i in range(self.world * self.micro)]
        mine = parts[self.rank :: self.world]
        return [collate(p) if p else collate(items[:1], filler=True) for p in mine]

    def updates(self, first_step: int) -> Iterator[list[Batch]]:
        step = first_step
        while True:
            if self.before is not None:
                self.before(step)
            yield self.update(step)
            step += 1


@dataclass
class ToyValid:
    """Three utterances over all ranks."""

    rank: int = 0
    world: int = 1

    def batches(self) -> Iterator[Batch]:
        for key in range(9000 + self.rank, 9003, self.world):
            yield collate([utterance(key)])
