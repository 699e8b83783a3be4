"""BEST-RQ against a slow reference, and what its targets must not depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone, normalize
from speechssl.models.blocks.quantize import RandomQuantizer
from speechssl.models.features.mel import LEAST_STD, LogMel, stack_frames
from speechssl.models.presets import preset
from speechssl.objectives.bestrq import BestRQ
from speechssl.objectives.masking import SpanMask
from speechssl.rng import generator
from speechssl.types import Batch
from tests.reference import bestrq_ref

SHAPE: dict[str, Any] = {
    "conv_dims": (8,) * 7,
    "dim": 16,
    "layers": 2,
    "heads": 2,
    "ffn": 16,
    "pos_kernel": 8,
    "pos_groups": 4,
    "dropout": 0.0,
}
SMALL: dict[str, Any] = {
    "codebooks": 3,
    "codes": 6,
    "code_dim": 4,
    "mel_bins": 10,
    "mask": SpanMask(0.5, 3),
}
LENGTHS = [8000, 5200, 11100]


def build(backbone: dict[str, Any] | None = None, **settings: Any) -> BestRQ:
    torch.manual_seed(3)
    network = Backbone(preset("tiny", **SHAPE | (backbone or {})))
    return BestRQ(network, BestRQ.Config(**SMALL | settings))


def make_batch(objective: BestRQ, lengths: list[int], *, pad: int = 0, gain: float = 1.0) -> Batch:
    wave = torch.zeros(len(lengths), max(lengths) + pad)
    for row, samples in enumerate(lengths):
        noise = np.random.default_rng(samples).standard_normal(samples).cumsum()
        wave[row, :samples] = torch.from_numpy(noise - noise.mean()).float() * 0.01 * gain
    wave_lens = torch.tensor(lengths)
    frame_lens = objective.backbone.geometry.frames(wave_lens)
    plan = objective.plan_fn()(frame_lens.numpy(), [generator(0, n) for n in lengths], True)
    assert plan.mask is not None
    longest = int(objective.backbone.geometry.frames(wave.shape[1]))
    mask = torch.nn.functional.pad(torch.from_numpy(plan.mask), (0, longest - plan.mask.shape[1]))
    return Batch(
        ids=[str(n) for n in lengths],
        wave=wave,
        wave_lens=wave_lens,
        frame_lens=frame_lens,
        num_targets=plan.num_targets,
        mask=mask,
    )


def reference_codes(objective: BestRQ, batch: Batch, row: int) -> list[list[int]]:
    """Codes of every valid frame of one utterance, the mel frames stacked by hand."""
    samples = int(batch.wave_lens[row])
    wave = normalize(batch.wave[row : row + 1, :samples], batch.wave_lens[row : row + 1])
    mel = LogMel(objective.cfg.mel_bins)(wave)[0].double()
    ratio = objective.backbone.geometry.hop // 160
    stacked = [
        torch.cat([mel[min(ratio * i + j, len(mel) - 1)] for j in range(ratio)])
        for i in range(int(batch.frame_lens[row]))
    ]
    normal = bestrq_ref.normalised(stacked, LEAST_STD)
    q = objective.quantizer
    return [
        [
            bestrq_ref.code(frame, projection.double(), codebook.double())
            for projection, codebook in zip(q.projection, q.codebook, strict=True)
        ]
        for frame in normal
    ]


def test_loss_and_gradients_equal_the_slow_reference():
    objective = build().double()
    for part in (objective.mel, objective.quantizer):
        part.float()  # targets are made in single precision by design
    batch = make_batch(objective, LENGTHS)
    batch = replace(batch, wave=batch.wave.double())
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}

    objective.zero_grad()
    mask = batch.mask
    assert mask is not None
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    context = objective.backbone.context(z, mask)
    total = torch.zeros((), dtype=torch.float64)
    right = 0
    for row in range(len(LENGTHS)):
        codes = reference_codes(objective, batch, row)
        for frame in mask[row].nonzero()[:, 0].tolist():
            logits = objective.head(context.x[row, frame]).view(3, 6)
            for book in range(3):
                wanted = codes[frame][book]
                total = total + bestrq_ref.cross_entropy(logits[book], wanted) / 3
                right += int(logits[book].argmax()) == wanted
    total.backward()
    # The library's softmaxes run in single precision, whatever the weights are.
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert float(loss.logs["accuracy"].total) == pytest.approx(right / 3, rel=1e-6)
    wanted_grads = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in wanted_grads.values())
    for name, grad in wanted_grads.items():
        torch.testing.assert_close(got[name], grad, atol=1e-6 * scale, rtol=1e-4, msg=name)


def test_targets_depend_on_neither_gain_padding_nor_mask():
    objective = build()
    batch = make_batch(objective, LENGTHS)
    codes = objective.targets(batch)
    for other in (
        make_batch(objective, LENGTHS, gain=3.0),
        make_batch(objective, LENGTHS, pad=3000),
        replace(batch, mask=torch.zeros_like(batch.mask)),  # type: ignore[arg-type]
    ):
        found = objective.targets(other)
        for row, frames in enumerate(batch.frame_lens.tolist()):
            assert torch.equal(found[row, :frames], codes[row, :frames])


def test_quantiser_never_learns_repeats_and_is_saved():
    objective = build()
    assert not [n for n, _ in objective.named_parameters() if n.startswith(("quantizer", "mel"))]
    assert {"quantizer.projection", "quantizer.codebook"} <= objective.state_dict().keys()
    torch.manual_seed(99)
    again = RandomQuantizer(20, 3, 6, 4)
    assert torch.equal(again.codebook, objective.quantizer.codebook)
    assert torch.equal(again.projection, objective.quantizer.projection)
    torch.testing.assert_close(again.codebook.norm(dim=-1), torch.ones(3, 6))
    x = torch.randn(50, 20)
    assert torch.equal(again(x), again(7.0 * x))


def test_unmasked_frames_have_no_gradient():
    objective = build()
    batch = make_batch(objective, [8000])
    seen = []
    objective.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    objective(batch)
    assert seen == [batch.num_targets]


@pytest.mark.parametrize("hop", [160, 320, 640])
def test_stacked_frames_start_with_the_frame(hop: int):
    wave = torch.randn(2, 9000) * 0.1
    lens = torch.tensor([9000, 6100])
    mel = LogMel(5)(wave)
    ratio, frames = hop // 160, (9000 - 400) // hop + 1
    stacked = stack_frames(mel, lens, frames, hop)
    assert stacked.shape == (2, frames, 5 * ratio)
    for row, samples in enumerate(lens.tolist()):
        alone = LogMel(5)(wave[row : row + 1, :samples])[0]
        for i in range((samples - 400) // hop + 1):
            for j in range(ratio):
                want = alone[min(i * ratio + j, len(alone) - 1)]
                torch.testing.assert_close(stacked[row, i, 5 * j : 5 * j + 5], want)
    with pytest.raises(ValueError, match="multiple of 160"):
        stack_frames(mel, lens, 3, 100)


def test_summary_names_what_accuracy_has_to_beat():
    objective = build()
    summary = objective.summary(objective(make_batch(objective, LENGTHS)).logs)
    assert 1 / 6 <= summary["top_code_share"] <= 1
    assert 1 <= summary["code_ppl"] <= 6.001
    assert 0 < summary["code_usage"] <= 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"codebooks": 0}, "codebooks: got 0"),
        ({"codes": 1}, "codes: got 1"),
        ({"code_dim": 0}, "code_dim: got 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        build(**settings)


def test_frames_that_are_no_multiple_of_10_ms_are_refused():
    with pytest.raises(ConfigError, match="expected a multiple of 160"):
        build({"conv_strides": (5, 3, 2, 2, 2, 2, 1)})
