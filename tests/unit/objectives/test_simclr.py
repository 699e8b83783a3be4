"""SimCLR against a slow reference; its segments; and what its loss must not depend on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from speechssl.objectives.simclr import SimCLR
from speechssl.rng import generator
from speechssl.types import Batch
from tests.reference import simclr_ref

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


def build(**settings: Any) -> SimCLR:
    torch.manual_seed(3)
    network = Backbone(preset("tiny", **SHAPE))
    return SimCLR(network, SimCLR.Config(**{"view_frames": 9, "projector": (12, 6)} | settings))


def make_batch(objective: SimCLR, lengths: list[int], *, pad: int = 0) -> Batch:
    wave = torch.zeros(len(lengths), max(lengths) + pad)
    for row, samples in enumerate(lengths):
        noise = np.random.default_rng(samples).standard_normal(samples).cumsum()
        wave[row, :samples] = torch.from_numpy(noise - noise.mean()).float() * 0.01
    wave_lens = torch.tensor(lengths)
    frame_lens = objective.backbone.geometry.frames(wave_lens)
    plan = objective.plan_fn()(frame_lens.numpy(), [generator(0, n) for n in lengths], True)
    assert plan.views is not None
    return Batch(
        ids=[str(n) for n in lengths],
        wave=wave,
        wave_lens=wave_lens,
        frame_lens=frame_lens,
        num_targets=plan.num_targets,
        views=torch.from_numpy(plan.views),
    )


def loss_of(objective: SimCLR, batch: Batch) -> float:
    return float(objective(batch).total.detach())


@pytest.mark.parametrize("projector", [(12, 6), (6,), ()])
def test_loss_and_gradients_equal_the_slow_reference(projector: tuple[int, ...]):
    objective = build(projector=projector).double()
    batch = make_batch(objective, LENGTHS)
    batch = replace(batch, wave=batch.wave.double())
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}

    objective.zero_grad()
    assert batch.views is not None
    pairs = []
    for row, views in enumerate(batch.views.tolist()):
        both = []
        for first, frames in views:
            # Frame i of wav2vec 2.0 hears samples 320 i to 320 i + 400.
            segment = batch.wave[row : row + 1, 320 * first : 320 * (first + frames - 1) + 400]
            states = objective.backbone(segment, torch.tensor([segment.shape[1]]))
            assert states.x.shape[1] == frames
            vector = sum(states.x[0, t] for t in range(frames)) / frames
            for part in objective.projector:
                weight = getattr(part, "weight", None)
                vector = vector.clamp(min=0) if weight is None else weight @ vector + part.bias
            both.append(vector)
        pairs.append((both[0], both[1]))
    total, right = simclr_ref.nt_xent(pairs, 0.1)
    total.backward()
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert int(loss.logs["accuracy"].total) == right
    wanted = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, atol=1e-5 * scale, rtol=1e-4, msg=name)


def test_the_segments_of_an_utterance_lie_inside_it_and_apart():
    plan = build().plan_fn()
    lens = np.array([0, 1, 2, 3, 17, 18, 19, 500])
    seen = set()
    for draw in range(50):
        drawn = plan(lens, [generator(draw, row) for row in range(len(lens))], True)
        assert drawn.views is not None
        assert drawn.num_targets == 12
        for total, ((first, frames), (second, frames_2)) in zip(lens, drawn.views, strict=True):
            assert frames == frames_2 == min(9, total // 2)
            assert 0 <= first <= first + frames <= second or frames == 0
            assert second + frames <= total
        seen.add(drawn.views[-1].tobytes())
    assert len(seen) > 40


def test_loss_depends_on_neither_padding_nor_order_of_utterances_and_views():
    objective = build()
    batch = make_batch(objective, LENGTHS)
    straight = loss_of(objective, batch)
    assert batch.views is not None
    padded = make_batch(objective, LENGTHS, pad=4000)
    swapped = replace(batch, views=batch.views.flip(1))
    turned = make_batch(objective, LENGTHS[::-1])
    for other in (padded, swapped, turned):
        assert loss_of(objective, other) == pytest.approx(straight, rel=1e-5)


def test_an_utterance_too_short_for_two_segments_takes_no_part():
    objective = build()
    without = objective(make_batch(objective, LENGTHS))
    with_short = objective(make_batch(objective, [*LENGTHS, 420]))
    assert int(with_short.count) == int(without.count) == 6
    assert float(with_short.total.detach()) == pytest.approx(
        float(without.total.detach()), rel=1e-5
    )


def test_one_utterance_alone_has_nothing_to_be_told_from():
    objective = build()
    batch = make_batch(objective, [9000])
    assert batch.num_targets == 0
    loss = objective(batch)
    assert float(loss.total.detach()) == 0.0
    loss.total.backward()


def test_a_collapsed_network_costs_the_logarithm_of_its_candidates():
    objective = build(projector=(4,))
    with torch.no_grad():
        objective.projector[0].weight.zero_()
    loss = objective(make_batch(objective, LENGTHS))
    summary = objective.summary(loss.logs)
    assert summary["collapsed_loss"] == pytest.approx(math.log(5), rel=1e-6)
    assert float(loss.total.detach()) / 6 == pytest.approx(math.log(5), rel=1e-5)
    assert summary["sibling_cos"] == pytest.approx(1.0, abs=1e-5)
    assert summary["other_cos"] == pytest.approx(1.0, abs=1e-5)


def test_what_is_exported_has_no_projector():
    objective = build()
    assert objective.exported() is objective.backbone


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"view_frames": 0}, "view_frames: got 0"),
        ({"temperature": 0.0}, r"temperature: got 0\.0"),
        ({"projector": (8, 0)}, r"projector: got \(8, 0\)"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        build(**settings)
