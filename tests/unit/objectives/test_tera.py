"""TERA against a slow reference; what is altered, and what counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone, normalize
from speechssl.models.features.band_stop import REACH
from speechssl.models.features.mel import LEAST_STD, LogMel
from speechssl.models.presets import preset
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.tera import Tera, runs
from speechssl.rng import generator
from speechssl.types import Batch, Frames
from tests.reference import mel_ref, tera_ref

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
LENGTHS = [8000, 5200, 11100]
BINS = 6


def build(backbone: dict[str, Any] | None = None, **settings: Any) -> Tera:
    torch.manual_seed(3)
    network = Backbone(preset("tiny", **SHAPE | (backbone or {})))
    small = {"mask": SpanMask(0.4, 3), "mel_bins": BINS, "max_band": 0.5}
    return Tera(network, Tera.Config(**small | settings))


def make_batch(objective: Tera, lengths: list[int] = LENGTHS, *, train: bool = True) -> Batch:
    source = torch.Generator().manual_seed(1)
    wave = torch.zeros(len(lengths), max(lengths))
    for row, samples in enumerate(lengths):
        wave[row, :samples] = torch.randn(samples, generator=source) * 0.1
    wave_lens = torch.tensor(lengths)
    frame_lens = objective.backbone.geometry.frames(wave_lens)
    plan = objective.plan_fn()(frame_lens.numpy(), [generator(0, n) for n in lengths], train)
    assert plan.mask is not None
    assert plan.replacement is not None
    assert plan.band is not None
    return Batch(
        ids=[str(n) for n in lengths],
        wave=wave,
        wave_lens=wave_lens,
        frame_lens=frame_lens,
        num_targets=plan.num_targets,
        mask=torch.from_numpy(plan.mask),
        replacement=torch.from_numpy(plan.replacement),
        band=torch.from_numpy(plan.band),
    )


@pytest.mark.parametrize("fate", ["hidden", "replaced", "left"])
def test_loss_and_gradients_equal_the_slow_reference(fate: str):
    shares = {"share_hidden": float(fate == "hidden"), "share_replaced": float(fate == "replaced")}
    objective = build(**shares).double()
    objective.mel.float()  # targets are made in single precision by design
    batch = make_batch(objective)
    batch = replace(batch, wave=batch.wave.double(), band=torch.tensor([[1, 3], [0, 0], [4, 2]]))
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}

    objective.zero_grad()
    network = objective.backbone
    total, count = torch.zeros((), dtype=torch.float64), 0
    errors = {"zero": 0.0, "line": 0.0, "told": 0.0}
    for row, (samples, frames) in enumerate(
        zip(batch.wave_lens.tolist(), batch.frame_lens.tolist(), strict=True)
    ):
        clean, lens = batch.wave[row : row + 1, :samples], batch.wave_lens[row : row + 1]
        first, width = batch.band[row].tolist()
        edges = objective.edges_hz[first], objective.edges_hz[first + width + 1]
        cut = clean[0]
        if width:
            cut = tera_ref.without_band(cut, float(edges[0]), float(edges[1]), 16000, REACH)
        z = network.encode(cut[None], lens)
        x = network.feature_projection(z.x)[0]
        places = batch.replacement[row, :frames].tolist()
        x = tera_ref.stands_here(x, places, network.masked_spec_embed)
        predicted = objective.head(network.encoder(Frames(x[None], z.lens)).x[0])
        mel = LogMel(BINS)(normalize(clean.float(), lens))[0].double()
        wanted = mel_ref.standardised(mel_ref.stacked(mel, frames, 2), LEAST_STD)
        chosen = batch.mask[row, :frames].tolist()
        part, bins = tera_ref.loss(predicted, wanted, chosen, (first, width), BINS)
        total, count = total + part, count + bins
        flat = torch.tensor(wanted).reshape(2 * frames, BINS).tolist()
        line = mel_ref.line(flat, [c for c in chosen for _ in range(2)])
        guesses = {
            "zero": torch.zeros(frames, 2 * BINS),
            "line": torch.tensor(line).reshape(frames, 2 * BINS),
            "told": predicted.detach(),
        }
        for name, guess in guesses.items():
            errors[name] += float(tera_ref.loss(guess, wanted, chosen, (0, 0), BINS)[0])
    total.backward()
    # The targets are made in single precision.
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert int(loss.count) == count
    for key, base in (("zero_ratio", "zero"), ("interpolation_ratio", "line")):
        wanted_ratio = errors["told"] / errors[base]
        assert objective.summary(loss.logs)[key] == pytest.approx(wanted_ratio, rel=1e-5)
    wanted_grads = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in wanted_grads.values())
    for name, grad in wanted_grads.items():
        torch.testing.assert_close(got[name], grad, atol=1e-6 * scale, rtol=1e-4, msg=name)


def test_shares_of_what_happens_are_the_published_ones():
    cfg = Tera.Config()
    lens = np.full(4000, 120)
    plan = Tera.plan(cfg, 16, lens, [generator(7, n) for n in range(len(lens))], True)
    assert plan.mask is not None
    assert plan.replacement is not None
    assert plan.band is not None
    mask, own = plan.mask, np.arange(120)
    hidden = (plan.replacement < 0).any(1)
    left = (plan.replacement == own).all(1)
    assert hidden.mean() == pytest.approx(0.8, abs=0.02)
    assert (~hidden & ~left).mean() == pytest.approx(0.1, abs=0.015)
    assert mask.mean() == pytest.approx(0.15, abs=0.015)
    assert ((plan.replacement == own) | mask).all()  # nothing else is touched
    assert np.array_equal(plan.replacement[hidden] < 0, mask[hidden])
    widths = np.bincount(plan.band[:, 1])
    assert len(widths) == 17  # 0 to a fifth of 80 bins
    assert widths.min() > 4000 / 17 * 0.7
    assert plan.band.min() >= 0
    assert plan.band.sum(1).max() <= 80


def test_a_replaced_span_is_a_span_of_the_same_utterance():
    cfg = Tera.Config(mask=SpanMask(0.3, 4), share_hidden=0.0, share_replaced=1.0)
    lens = np.array([40, 25, 60])
    plan = Tera.plan(cfg, 16, lens, [generator(7, n) for n in range(3)], True)
    assert plan.mask is not None
    assert plan.replacement is not None
    for row, frames in enumerate(lens):
        assert runs(plan.mask[row])
        for start, end in runs(plan.mask[row]):
            source = plan.replacement[row, start:end]
            assert (np.diff(source) == 1).all()
            assert source[0] >= 0
            assert source[-1] < frames


def test_at_evaluation_every_chosen_frame_is_hidden():
    objective = build(share_hidden=0.0, share_replaced=0.5)
    batch = make_batch(objective, train=False)
    assert torch.equal(batch.replacement < 0, batch.mask)


def test_targets_are_of_the_clean_waveform_and_mockingjay_hears_all_of_it():
    objective = build()
    batch = make_batch(objective)
    heard: list[torch.Tensor] = []
    objective.backbone.feature_extractor.register_forward_pre_hook(
        lambda _, inputs: heard.append(inputs[0])
    )
    banded = replace(batch, band=torch.tensor([[1, 3]] * 3))
    objective(banded)
    none = replace(batch, band=torch.zeros(3, 2, dtype=torch.long))
    objective(none)
    clean = normalize(batch.wave, batch.wave_lens)
    assert not torch.allclose(heard[0], clean, atol=1e-2)
    torch.testing.assert_close(heard[1], clean)
    assert torch.equal(objective.mel(banded), objective.mel(none))
    mockingjay = build(max_band=0.0)
    plain = make_batch(mockingjay)
    assert not plain.band[:, 1].any()
    loss = mockingjay(plain)
    assert int(loss.count) == BINS * int(plain.mask.sum())
    assert "band_zero_ratio" not in loss.logs


def test_without_alteration_there_is_no_loss():
    objective = build(max_band=0.0, mask=SpanMask(0.0, 3, min_masks=0))
    loss = objective(make_batch(objective))
    assert float(loss.total.detach()) == 0.0
    assert int(loss.count) == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mel_bins": 0}, "mel_bins: got 0"),
        ({"share_hidden": -0.1}, "share_hidden -0.1"),
        ({"share_hidden": 0.9, "share_replaced": 0.2}, "share_replaced 0.2"),
        ({"max_band": 1.5}, "max_band 1.5"),
        ({"backbone": {"conv_strides": (5, 2, 2, 2, 2, 2, 1)}}, None),
        ({"backbone": {"conv_strides": (5, 2, 2, 2, 2, 1, 1)}}, "frames of 80 samples"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str | None):
    if told is None:
        assert build(**settings).mel.per_frame == 1
        return
    with pytest.raises(ConfigError, match=told):
        build(**settings)
