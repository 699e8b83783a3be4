"""A small backbone and batches for the tests of heads."""

import torch

from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from speechssl.types import Batch

VOCABULARY = ("<pad>", "|", "A", "B", "C")


def small_backbone(**overrides):
    sizes = {"conv_dims": (16,) * 7, "dim": 32, "layers": 2, "heads": 2, "ffn": 48}
    return Backbone(preset("tiny", **sizes | {"pos_kernel": 8, "pos_groups": 4} | overrides))


def make_batch(seconds=(0.5, 0.3), seed=0, **fields):
    samples = [int(16000 * s) for s in seconds]
    generator = torch.Generator().manual_seed(seed)
    wave = torch.zeros(len(samples), max(samples))
    for row, size in enumerate(samples):
        wave[row, :size] = 0.1 * torch.randn(size, generator=generator)
    lens = torch.tensor(samples)
    return Batch(
        ids=[f"u{i}" for i in range(len(samples))],
        wave=wave,
        wave_lens=lens,
        frame_lens=((lens - 400) // 320 + 1).clamp(min=0),
        num_targets=len(samples),
        **fields,
    )


def text_batch(targets=((2, 3, 3), (4,)), **options):
    lens = torch.tensor([len(t) for t in targets])
    tokens = torch.zeros(len(targets), int(lens.max()), dtype=torch.long)
    for row, target in enumerate(targets):
        tokens[row, : len(target)] = torch.tensor(target, dtype=torch.long)
    return make_batch(tokens=tokens, token_lens=lens, **options)
