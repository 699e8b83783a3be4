"""A small network and batches of noise for objectives that mask frames."""

from __future__ import annotations

from typing import Any

import torch

from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from speechssl.objectives.base import Objective
from speechssl.rng import generator
from speechssl.types import Batch

SHAPE: dict[str, Any] = {
    "conv_dims": (8,) * 7,
    "dim": 16,
    "layers": 3,
    "heads": 2,
    "ffn": 16,
    "pos_kernel": 8,
    "pos_groups": 4,
    "dropout": 0.0,
}
LENGTHS = (8000, 5200, 11100)


def small_backbone(**changes: Any) -> Backbone:
    """A transformer of three blocks; the same weights every time."""
    torch.manual_seed(3)
    return Backbone(preset("tiny", **SHAPE | changes))


def noise_batch(objective: Objective, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """Noise, other for every length, with the masks that the objective draws."""
    wave = torch.zeros(len(lengths), max(lengths))
    for row, samples in enumerate(lengths):
        source = torch.Generator().manual_seed(samples)
        wave[row, :samples] = torch.randn(samples, generator=source) * 0.1
    wave_lens = torch.tensor(lengths)
    frame_lens = objective.backbone.geometry.frames(wave_lens)
    plan = objective.plan_fn()(frame_lens.numpy(), [generator(0, n) for n in lengths], True)
    assert plan.mask is not None
    return Batch(
        ids=[str(n) for n in lengths],
        wave=wave,
        wave_lens=wave_lens,
        frame_lens=frame_lens,
        num_targets=plan.num_targets,
        mask=torch.from_numpy(plan.mask),
    )


def feed_forwards_by_hand(network: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What the feed-forward part of every block puts out for one unpadded x (1, T, D)."""
    found = []
    if network.pos_conv_embed is not None:
        x = x + network.pos_conv_embed(x, None)
    x = x if network.pre else network.layer_norm(x)
    for block in network.layers:
        if network.pre:
            x = x + block.attention(block.layer_norm(x), None, None)
            found.append(block.feed_forward(block.final_layer_norm(x)))
            x = x + found[-1]
        else:
            x = block.layer_norm(x + block.attention(x, None, None))
            found.append(block.feed_forward(x))
            x = block.final_layer_norm(x + found[-1])
    return found
