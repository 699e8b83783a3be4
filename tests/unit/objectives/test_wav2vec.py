"""wav2vec (v1) against a slow reference and the facts its paper's arithmetic implies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from speechssl.objectives.wav2vec import Wav2Vec
from speechssl.rng import generator
from speechssl.types import Batch, Frames
from tests.reference import wav2vec_ref


class NoNorm(nn.Module):
    def forward(self, x: Tensor, lens: Tensor) -> Tensor:
        return x


def build(**settings: object) -> Wav2Vec:
    torch.manual_seed(2)
    cfg = preset(
        "wav2vec-tiny",
        conv_dims=(6,) * 5,
        dim=6,
        layers=2,
        context_kernels=(2, 3),
        normalize=False,
    )
    return Wav2Vec(Backbone(cfg), Wav2Vec.Config(**settings)).eval()  # type: ignore[arg-type]


def make_batch(objective: Wav2Vec, lengths: list[int], *, seed: int = 0, pad: int = 0) -> Batch:
    """A batch whose row b depends on its length alone, so that batches can be recomposed."""
    wave = torch.zeros(len(lengths), max(lengths) + pad)
    for row, samples in enumerate(lengths):
        noise = np.random.default_rng(samples).standard_normal(samples)
        wave[row, :samples] = torch.from_numpy(noise).float()
    wave_lens = torch.tensor(lengths)
    frame_lens = objective.backbone.geometry.frames(wave_lens)
    rngs = [generator(seed, str(samples)) for samples in lengths]
    plan = objective.plan_fn()(frame_lens.numpy(), rngs, True)
    assert plan.negatives is not None
    return Batch(
        ids=[str(samples) for samples in lengths],
        wave=wave,
        wave_lens=wave_lens,
        frame_lens=frame_lens,
        num_targets=plan.num_targets,
        negatives=torch.from_numpy(plan.negatives),
    )


def test_offset_keeps_prediction_and_target_apart() -> None:
    assert build().cfg.offset_frames == 3  # ceil(465 / 160)
    wav2vec2 = Backbone(preset("tiny", conv_dims=(4,) * 7, dim=32, layers=1, heads=2, ffn=8))
    assert Wav2Vec(wav2vec2, Wav2Vec.Config()).cfg.offset_frames == 2  # ceil(400 / 320)


def test_negatives_are_other_frames_of_the_row() -> None:
    cfg = build().cfg
    lens = np.array([50, 2, 17, 1, 0])
    plan = Wav2Vec.plan(cfg, 6, lens, [generator(row) for row in range(5)], True)
    assert plan.negatives is not None
    assert plan.negatives.shape == (5, 50, 10)
    for row, length in enumerate(lens):
        drawn = plan.negatives[row, :length]
        if length < 2:
            continue
        assert (drawn != np.arange(length)[:, None]).all()
        assert drawn.min() >= 0
        assert drawn.max() < length
    assert set(plan.negatives[0].ravel()) == set(range(50))
    assert plan.num_targets == sum(
        max(length - 3 - step, 0) for length in lens.tolist() for step in range(12)
    )


def test_negatives_of_an_utterance_do_not_depend_on_its_batch() -> None:
    objective = build()
    alone, mixed = make_batch(objective, [3000]), make_batch(objective, [5000, 3000, 900])
    assert alone.negatives is not None
    assert mixed.negatives is not None
    torch.testing.assert_close(mixed.negatives[1, : alone.negatives.shape[1]], alone.negatives[0])


def test_negatives_are_uniform() -> None:
    cfg = build().cfg
    lens = np.full(400, 8)
    plan = Wav2Vec.plan(cfg, 6, lens, [generator(row, "u") for row in range(400)], True)
    assert plan.negatives is not None
    hits = np.bincount(plan.negatives[:, 3].ravel(), minlength=8)
    expected = 4000 / 7
    assert hits[3] == 0
    assert np.abs(np.delete(hits, 3) - expected).max() < 4 * math.sqrt(expected)


@pytest.mark.parametrize(
    "settings", [{}, {"balanced": True}, {"loss": "infonce"}, {"num_steps": 3, "num_negatives": 4}]
)
def test_loss_and_gradients_equal_the_reference(settings: dict[str, object]) -> None:
    objective = build(**settings).double()
    batch = make_batch(objective, [3300, 2100, 700, 465])
    batch.wave = batch.wave.double()
    loss = objective(batch)
    loss.total.backward()
    got = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()

    assert batch.negatives is not None
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    c = objective.backbone.context(z)
    rows = [int(length) for length in batch.frame_lens]
    total, count = wav2vec_ref.loss(
        [z.x[row, :length] for row, length in enumerate(rows)],
        [c.x[row, :length] for row, length in enumerate(rows)],
        objective.predict.weight.unflatten(0, (-1, 6)),
        objective.predict.bias,
        batch.negatives.tolist(),
        offset=3,
        softmax=settings.get("loss") == "infonce",
        balanced=bool(settings.get("balanced")),
    )
    total.backward()
    assert int(loss.count) == count == batch.num_targets
    torch.testing.assert_close(loss.total, total, rtol=1e-9, atol=0)
    assert got.keys() == {name for name, _ in objective.named_parameters()}
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("settings", "nats"),
    [
        ({}, 7.6246),  # 11 ln 2
        ({"balanced": True}, 2 * math.log(2)),
        ({"loss": "infonce"}, math.log(11)),
    ],
)
def test_loss_at_zero_weights(settings: dict[str, object], nats: float) -> None:
    objective = build(**settings)
    nn.init.zeros_(objective.predict.weight)
    nn.init.zeros_(objective.predict.bias)
    loss = objective(make_batch(objective, [4000, 2500]))
    scalars = objective.summary(loss.logs)
    assert scalars["contrastive"] == pytest.approx(nats, abs=1e-3)
    assert scalars["accuracy"] == 0  # all tied: nothing is told apart


@pytest.mark.parametrize("settings", [{}, {"balanced": True}, {"loss": "infonce"}])
def test_chance_is_the_best_that_a_constant_score_can_do(settings: dict[str, object]) -> None:
    objective = build(**settings)
    losses = [
        float(objective._cross_entropy(torch.full((1, 11), score)))
        for score in np.linspace(-6, 6, 1201)
    ]
    assert objective.chance()["contrastive"] == pytest.approx(min(losses), abs=1e-4)
    assert objective.chance()["accuracy"] == 1 / 11


def test_logs_add_up_and_have_a_chance_level() -> None:
    objective = build()
    loss = objective(make_batch(objective, [4000, 2500]))
    steps = [loss.logs[f"accuracy_step_{i + 1}"] for i in range(12)]
    assert sum(int(s.total) for s in steps) == int(loss.logs["accuracy"].total)
    assert sum(int(s.count) for s in steps) == int(loss.count)
    assert set(objective.chance()) <= set(objective.summary(loss.logs))
    # Random networks know nothing: near one in eleven.
    assert objective.summary(loss.logs)["accuracy"] == pytest.approx(1 / 11, abs=0.06)


def test_accuracy_is_one_when_the_next_frames_are_told() -> None:
    objective = build(num_steps=1, offset_frames=1)
    frames = nn.functional.one_hot(torch.arange(12) % 6, 6).float()[None]
    ahead = frames.roll(-1, 1)  # a context that knows the frame to come
    objective.backbone.encode = lambda *_: Frames(frames, torch.tensor([12]))  # type: ignore
    objective.backbone.context = lambda *_: Frames(ahead, torch.tensor([12]))  # type: ignore
    objective.predict.weight.data.copy_(20 * torch.eye(6))
    objective.predict.bias.data.zero_()
    plan = objective.plan_fn()(np.array([12]), [generator(0)], True)
    assert plan.negatives is not None
    negatives = torch.from_numpy(plan.negatives)
    # The six frame kinds repeat after six frames; step away from those.
    twins = (negatives % 6) == (torch.arange(12) % 6)[None, :, None]
    negatives = torch.where(twins, (negatives + 1) % 12, negatives)
    empty = torch.zeros(1, 1)
    batch = Batch(
        ["a"], empty, torch.tensor([1]), torch.tensor([12]), plan.num_targets, negatives=negatives
    )
    assert objective.summary(objective(batch).logs)["accuracy"] == 1.0


def test_prediction_and_target_share_no_sample() -> None:
    objective = build()
    for module in objective.modules():
        if hasattr(module, "layer_norm"):
            module.layer_norm = NoNorm()
    wave = torch.rand(1, 6000, requires_grad=True)
    z = objective.backbone.encode(wave, torch.tensor([6000]))
    c = objective.backbone.context(z)
    now = 12
    (prediction,) = torch.autograd.grad(c.x[0, now].sum(), wave, retain_graph=True)
    (target,) = torch.autograd.grad(z.x[0, now + objective.cfg.offset_frames].sum(), wave)
    assert prediction.any()
    assert target.any()
    last = int(prediction[0].nonzero().max())
    assert last < int(target[0].nonzero().min())
    # One frame less would overlap: the offset is the least that keeps them apart.
    geometry = objective.backbone.geometry
    start = (now + objective.cfg.offset_frames - 1) * geometry.hop
    assert start < now * geometry.hop + geometry.receptive


def test_targets_learn_too() -> None:
    objective = build()
    frames = torch.rand(1, 30, 6, requires_grad=True)
    objective.backbone.encode = lambda *_: Frames(frames, torch.tensor([30]))  # type: ignore
    objective.backbone.context = lambda z: Frames(z.x.detach(), z.lens)  # type: ignore
    batch = make_batch(objective, [5110])
    assert batch.frame_lens.tolist() == [30]
    objective(batch).total.backward()
    assert frames.grad is not None
    assert frames.grad.any()


def test_padding_changes_nothing() -> None:
    objective = build()
    tight, loose = make_batch(objective, [3000]), make_batch(objective, [3000], pad=4000)
    one, other = objective(tight), objective(loose)
    torch.testing.assert_close(other.total, one.total, rtol=1e-5, atol=0)
    assert int(other.count) == int(one.count) == tight.num_targets


def test_rows_are_independent() -> None:
    objective = build()
    lengths = [4000, 1500, 2600]
    whole = objective(make_batch(objective, lengths))
    turned = objective(make_batch(objective, lengths[::-1]))
    single = [objective(make_batch(objective, [length])) for length in lengths]
    torch.testing.assert_close(turned.total, whole.total, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        torch.stack([loss.total for loss in single]).sum(), whole.total, rtol=1e-5, atol=0
    )
    assert sum(int(loss.count) for loss in single) == int(whole.count)


def test_rows_without_targets_still_give_a_graph() -> None:
    objective = build()
    batch = make_batch(objective, [600, 465])
    loss = objective(batch)
    loss.total.backward()
    assert float(loss.total.detach()) == 0.0
    assert int(loss.count) == batch.num_targets == 0
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_runs_on_the_wav2vec2_backbone() -> None:
    torch.manual_seed(0)
    cfg = preset("tiny", conv_dims=(8,) * 7, dim=32, layers=1, heads=2, ffn=16)
    objective = Wav2Vec(Backbone(cfg), Wav2Vec.Config(num_steps=4))
    batch = make_batch(objective, [8000, 5000])
    loss = objective(batch)
    assert (
        int(loss.count)
        == batch.num_targets
        == sum(int(frames) - 2 - step for frames in batch.frame_lens for step in range(4))
    )
    loss.total.backward()
    assert objective.predict.weight.shape == (4 * 8, 32)


def test_autocast_stays_close() -> None:
    objective = build()
    batch = make_batch(objective, [4000])
    exact = objective(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch)
    assert rough.total.dtype == torch.float32
    assert float(rough.total.detach()) == pytest.approx(float(exact.total.detach()), rel=0.02)


def test_size_with_predictions() -> None:
    with torch.device("meta"):
        objective = Wav2Vec(Backbone(preset("wav2vec")), Wav2Vec.Config())
    assert sum(p.numel() for p in objective.predict.parameters()) == 12 * 512 * 512 + 512
    assert sum(p.numel() for p in objective.parameters()) == pytest.approx(32.5e6, rel=0.005)


@pytest.mark.slow
def test_the_large_network_begins_knowing_nothing() -> None:
    torch.manual_seed(0)
    objective = Wav2Vec(Backbone(preset("wav2vec")), Wav2Vec.Config())
    with torch.no_grad():
        scalars = objective.summary(objective(make_batch(objective, [32000, 24000])).logs)
    # Scores of a random network spread by a few nats: above chance, of its order.
    assert 7.6 < scalars["contrastive"] < 2 * 7.6
    assert scalars["accuracy"] < 0.2


@pytest.mark.parametrize(
    "settings",
    [
        {"num_steps": 0},
        {"num_negatives": 0},
        {"offset_frames": 0},
        {"balanced": True, "loss": "infonce"},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"objective\."):
        Wav2Vec.Config(**settings)  # type: ignore[arg-type]


def test_a_batch_without_negatives_is_refused() -> None:
    objective = build()
    batch = make_batch(objective, [3000])
    batch.negatives = None
    with pytest.raises(ValueError, match="negatives"):
        objective(batch)
