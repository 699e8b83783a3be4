"""wav2vec 2.0 against a slow reference, and what its paper's arithmetic implies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.blocks.quantize import GumbelQuantizer, gumbel_noise
from speechssl.models.presets import preset
from speechssl.objectives.contrast import (
    accuracy_sum,
    cosine_logits,
    draw_cross_negatives,
    draw_negatives,
)
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.rng import generator, seed_from
from speechssl.types import Batch, Progress
from tests.reference import wav2vec2_ref

SMALL: dict[str, Any] = {
    "num_negatives": 5,
    "final_dim": 8,
    "codes": 6,
    "code_dim": 8,
    "mask": SpanMask(0.65, 3),
}


def build(backbone: dict[str, Any] | None = None, **settings: Any) -> Wav2Vec2:
    torch.manual_seed(3)
    shape = {
        "conv_dims": (8,) * 7,
        "dim": 16,
        "layers": 2,
        "heads": 2,
        "ffn": 16,
        "pos_kernel": 8,
        "pos_groups": 4,
        "dropout": 0.0,
    }
    network = Backbone(preset("tiny", **shape | (backbone or {})))
    return Wav2Vec2(network, Wav2Vec2.Config(**SMALL | settings))


def make_batch(
    objective: Wav2Vec2, lengths: list[int], *, key: int = 0, train: bool = True, pad: int = 0
) -> Batch:
    """A batch whose row b depends on its length alone, so that batches can be recomposed."""
    wave = torch.zeros(len(lengths), max(lengths) + pad)
    for row, samples in enumerate(lengths):
        noise = np.random.default_rng(samples).standard_normal(samples)
        wave[row, :samples] = torch.from_numpy(noise).float() * 0.1
    wave_lens = torch.tensor(lengths)
    frame_lens = objective.backbone.geometry.frames(wave_lens)
    rngs = [generator(key, samples) for samples in lengths]
    plan = objective.plan_fn()(frame_lens.numpy(), rngs, train)
    assert plan.mask is not None
    assert plan.negatives is not None
    mask = torch.from_numpy(plan.mask)
    longest = int(objective.backbone.geometry.frames(wave.shape[1]))
    mask = nn.functional.pad(mask, (0, longest - mask.shape[1]))
    return Batch(
        ids=[str(samples) for samples in lengths],
        wave=wave,
        wave_lens=wave_lens,
        frame_lens=frame_lens,
        num_targets=plan.num_targets,
        seeds=tuple(seed_from(key, samples, "noise") for samples in lengths),
        mask=mask,
        negatives=torch.from_numpy(plan.negatives),
    )


LENGTHS = [9000, 16000, 7000]


def reference(objective: Wav2Vec2, batch: Batch, x: Tensor | None = None) -> wav2vec2_ref.Parts:
    """The slow loss on what the backbone gives; only the loss itself is computed twice.

    `x` (B, T, D) is what the targets are told from, where that is not the context network's output.
    """
    cfg, mask = objective.cfg, batch.mask
    assert mask is not None
    assert batch.negatives is not None
    assert batch.seeds
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    u = objective.backbone.features(z)
    c = objective.backbone.context(z, mask).x if x is None else x
    counts = mask.sum(1).tolist()
    noise = None
    if objective.training:
        shape = (cfg.groups, cfg.codes)
        noise = gumbel_noise(batch.seeds, counts, shape, z.x.detach()).double()
    names = {
        "logits": objective.quantizer.weight_proj.weight,
        "logits_bias": objective.quantizer.weight_proj.bias,
        "codebook": objective.quantizer.codevectors.view(cfg.groups, cfg.codes, -1),
        "project_q": objective.project_q.weight,
        "project_q_bias": objective.project_q.bias,
        "project_c": objective.project_hid.weight,
        "project_c_bias": objective.project_hid.bias,
    }
    return wav2vec2_ref.loss(
        list(z.x),
        [u[b][mask[b]] for b in range(len(batch))],
        [c[b][mask[b]] for b in range(len(batch))],
        names,
        noise,
        [part[:, : cfg.num_negatives].tolist() for part in batch.negatives.split(counts)],
        frames=batch.frame_lens.tolist(),
        temperature=objective.temperature,
        diversity_weight=cfg.diversity_weight,
        penalty_weight=cfg.penalty_weight,
        cross=batch.negatives[:, cfg.num_negatives :].tolist(),
    )


GROUP = {"conv_norm": "group", "conv_bias": False, "norm": "post", "normalize": False}


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("backbone", [{}, GROUP], ids=["layer-pre", "group-post"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cross", [0, 4], ids=["own", "cross"])
def test_loss_and_gradients_equal_the_reference(
    backbone: dict[str, Any], train: bool, cross: int
) -> None:
    objective = build(backbone, cross_negatives=cross).double().train(train)
    objective.begin_step(Progress(step=0))
    batch = make_batch(objective, LENGTHS)
    batch.wave = batch.wave.double()
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    parts = reference(objective, batch)
    parts.total.backward()
    assert int(loss.count) == parts.count == batch.num_targets > 20
    for name in ("contrastive", "diversity", "penalty"):
        expected = getattr(parts, name).detach()
        torch.testing.assert_close(loss.logs[name].total.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.total.double(), parts.total, rtol=1e-6, atol=0)
    assert int(loss.logs["accuracy"].total) == parts.correct
    for name, parameter in objective.named_parameters():
        if parameter.grad is None:
            assert not got.get(name, torch.zeros(1)).any(), name
            continue
        scale = float(parameter.grad.abs().max()) + 1e-3
        torch.testing.assert_close(got[name], parameter.grad, rtol=0, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("train", [True, False])
def test_targets_are_rows_of_the_codebooks(train: bool) -> None:
    quantizer = GumbelQuantizer(8, 2, 6, 10)
    x = torch.randn(40, 8)
    noise = gumbel_noise([1, 2], [30, 10], (2, 6), x) if train else None
    out = quantizer(x, 0.7, noise)
    books = quantizer.codevectors.view(2, 6, 5)
    rows = torch.cat([books[0, out.codes[:, 0]], books[1, out.codes[:, 1]]], dim=1)
    torch.testing.assert_close(out.vectors, rows, rtol=1e-6, atol=1e-6)
    out.vectors.sum().backward()
    assert quantizer.codevectors.grad is not None
    assert train == bool(
        quantizer.weight_proj.weight.grad is not None and quantizer.weight_proj.weight.grad.any()
    )


def test_eval_is_deterministic_and_blind_to_temperature() -> None:
    objective = build().eval()
    batch = make_batch(objective, LENGTHS)
    first = objective(batch).total
    objective.begin_step(Progress(step=400_000))
    assert torch.equal(objective(batch).total, first)


def test_noise_is_gumbel_and_belongs_to_the_utterance() -> None:
    like = torch.zeros(1)
    noise = gumbel_noise([5, 6], [3000, 10], (2, 6), like)
    torch.testing.assert_close(gumbel_noise([6], [10], (2, 6), like), noise[3000:])
    assert float(noise.mean()) == pytest.approx(np.euler_gamma, abs=0.03)
    assert float(noise.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.03)


def test_small_initial_weights_leave_the_choice_of_codes_open() -> None:
    """At the published std of 1 the softmax is saturated: noise rarely moves a choice."""
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(1))
    moved, steepness = {}, {}
    for std in (1.0, 0.15):
        torch.manual_seed(2)
        quantizer = GumbelQuantizer(256, 2, 320, 8, init_std=std)
        assert float(quantizer.weight_proj.weight.detach().std()) == pytest.approx(std, rel=0.02)
        noise = gumbel_noise([3], [500], (2, 320), x)
        q = quantizer(x, 2.0, noise)
        moved[std] = float((q.codes != quantizer(x).codes).float().mean())
        steepness[std] = float((q.probs * (1 - q.probs)).sum(-1).detach().mean())  # of the softmax
    assert moved[1.0] < 0.3 < 0.7 < moved[0.15]
    assert steepness[0.15] > 2 * steepness[1.0]
    with pytest.raises(ConfigError, match="code_init_std 0.0 must be above 0"):
        Wav2Vec2.Config(code_init_std=0.0)


def test_negatives_are_other_masked_frames_of_the_row() -> None:
    counts = np.array([30, 0, 2, 7])
    negatives = draw_negatives(counts, 100, [generator(i) for i in range(4)])
    assert negatives.shape == (39, 100)
    row = 0
    for count in counts:
        for own in range(count):
            drawn = negatives[row + own]
            assert (drawn != own).all()
            assert drawn.min() >= 0
            assert drawn.max() < count
        row += count
    assert set(negatives[:30].ravel()) == set(range(30))
    with pytest.raises(ValueError, match="one masked frame"):
        draw_negatives(np.array([1]), 3, [generator(0)])


def test_cross_negatives_are_masked_frames_of_the_other_rows() -> None:
    counts = np.array([5, 0, 7, 3])
    rngs = [generator(9, row) for row in range(4)]
    cross = draw_cross_negatives(counts, 200, rngs)
    row_of = np.repeat(np.arange(4), counts)
    assert cross.shape == (15, 200)
    for frame, places in enumerate(cross):
        assert set(places) == set(np.flatnonzero(row_of != row_of[frame]))
    assert (draw_cross_negatives(np.array([0, 4]), 3, rngs[:2]) == -1).all()
    assert draw_cross_negatives(np.array([0]), 3, rngs[:1]).shape == (0, 3)


def test_an_utterance_alone_has_no_cross_negatives() -> None:
    alone = build().eval()
    crossed = build(cross_negatives=4).eval()
    batch = make_batch(alone, LENGTHS[:1])
    found = crossed(make_batch(crossed, LENGTHS[:1]))
    torch.testing.assert_close(found.total, alone(batch).total)
    assert float(found.logs["neg_is_pos"].total) == float(alone(batch).logs["neg_is_pos"].total)
    assert crossed.chance()["contrastive"] == pytest.approx(math.log(1 + 5 + 4))
    with pytest.raises(ConfigError, match="cross_negatives -1"):
        Wav2Vec2.Config(cross_negatives=-1)


def test_plan_of_an_utterance_does_not_depend_on_its_batch() -> None:
    objective = build()
    alone, mixed = make_batch(objective, [9000]), make_batch(objective, [16000, 9000])
    assert alone.mask is not None
    assert mixed.mask is not None
    assert alone.negatives is not None
    assert mixed.negatives is not None
    frames, first = alone.mask.shape[1], int(mixed.mask[0].sum())
    assert torch.equal(mixed.mask[1, :frames], alone.mask[0])
    assert torch.equal(mixed.negatives[first:], alone.negatives)
    assert mixed.num_targets == int(mixed.mask.sum())


def test_mask_vector_changes_the_context_and_never_the_targets() -> None:
    objective = build().eval()
    batch = make_batch(objective, LENGTHS)
    seen: dict[str, list[Tensor]] = {"y": [], "a": []}
    objective.project_q.register_forward_hook(lambda *io: seen["y"].append(io[-1]))
    objective.project_hid.register_forward_hook(lambda *io: seen["a"].append(io[-1]))
    objective(batch)
    objective.backbone.masked_spec_embed.data.add_(1.0)
    objective(batch)
    assert torch.equal(*seen["y"])
    assert not torch.allclose(*seen["a"])


def test_masked_frames_are_hidden_from_the_context() -> None:
    objective = build().eval()
    batch = make_batch(objective, [16000])
    assert batch.mask is not None
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    changed = replace(z, x=torch.where(batch.mask[:, :, None], torch.randn_like(z.x), z.x))
    before, after = (objective.backbone.context(frames, batch.mask).x for frames in (z, changed))
    assert torch.equal(before, after)


def test_mask_vector_learns() -> None:
    objective = build().train()
    objective(make_batch(objective, LENGTHS)).total.backward()
    grad = objective.backbone.masked_spec_embed.grad
    assert grad is not None
    assert grad.any()


def test_gradient_of_the_encoder_is_scaled() -> None:
    grads = []
    for scale in (1.0, 0.1):
        objective = build({"feature_grad_mult": scale}).train()
        objective(make_batch(objective, LENGTHS)).total.backward()
        grads.append(dict(objective.named_parameters()))
    full, tenth = grads
    for name, parameter in full.items():
        factor = 0.1 if "feature_extractor" in name else 1.0
        assert parameter.grad is not None
        expected = parameter.grad * factor
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(tenth[name].grad, expected, rtol=0, atol=atol, msg=name)


def test_a_frozen_encoder_gets_no_gradient() -> None:
    objective = build({"feature_grad_mult": 0.0}).train()
    objective(make_batch(objective, LENGTHS)).total.backward()
    for parameter in objective.backbone.feature_extractor.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def diversity(objective: Wav2Vec2) -> float:
    return objective.summary(objective(make_batch(objective, LENGTHS)).logs)["diversity"]


def test_diversity_of_uniform_and_collapsed_codes() -> None:
    objective = build().eval()
    projection = objective.quantizer.weight_proj
    nn.init.zeros_(projection.weight)
    assert diversity(objective) == pytest.approx(0.0, abs=1e-5)
    projection.bias.data[::6] = 100.0  # the first code of both groups
    assert diversity(objective) == pytest.approx((12 - 2) / 12, abs=1e-5)


def test_identical_targets_are_no_negatives_and_cost_nothing() -> None:
    objective = build().eval()
    nn.init.zeros_(objective.quantizer.weight_proj.weight)
    objective.quantizer.weight_proj.bias.data[::6] = 100.0
    loss = objective(make_batch(objective, LENGTHS))
    scalars = objective.summary(loss.logs)
    assert scalars["contrastive"] == 0.0
    assert scalars["neg_is_pos"] == pytest.approx(1.0, abs=1e-6)
    assert scalars["code_ppl"] == pytest.approx(2.0, abs=1e-4)
    loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_only_twins_of_the_positive_are_cut_out() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 2:8], mask[1, :5] = True, True
    a, y = torch.randn(11, 4), torch.randn(11, 4)
    codes = torch.randint(0, 2, (11, 2))
    negatives = torch.from_numpy(draw_negatives(np.array([6, 5]), 20, [generator(0), generator(1)]))
    logits = cosine_logits(a, y, mask, negatives, codes, 0.1)
    assert logits[:, 0].isfinite().all()
    for frame in range(11):
        first = 0 if frame < 6 else 6
        own = nn.functional.cosine_similarity(a[frame], y[frame], dim=0) / 0.1
        torch.testing.assert_close(logits[frame, 0], own)
        for column, place in enumerate(negatives[frame].tolist(), start=1):
            other = first + place
            if torch.equal(codes[other], codes[frame]):
                assert logits[frame, column] == -math.inf
            else:
                score = nn.functional.cosine_similarity(a[frame], y[other], dim=0) / 0.1
                torch.testing.assert_close(logits[frame, column], score)


def test_accuracy_counts_no_ties() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, -1.0]])
    assert int(accuracy_sum(logits)) == 1


@pytest.mark.parametrize(("end", "update"), [(0.5, 277_258), (0.1, 599_145)])
def test_temperature_reaches_its_floor_when_the_paper_says(end: float, update: int) -> None:
    objective = build(temperature_end=end)
    for step in (0, 1, update // 2, update - 2, update + 1, 10 * update):
        objective.begin_step(Progress(step=step))
        expected = wav2vec2_ref.gumbel_temperature(step, 2.0, end)
        assert objective.temperature == pytest.approx(expected, rel=1e-9)
        assert (objective.temperature == end) == (step > update)


def initial(objective: Wav2Vec2, lengths: list[int]) -> dict[str, float]:
    objective.train()
    objective.begin_step(Progress(step=0))
    with torch.no_grad():
        return objective.summary(objective(make_batch(objective, lengths)).logs)


def test_initial_loss_is_near_chance_at_tiny() -> None:
    torch.manual_seed(0)
    objective = Wav2Vec2(Backbone(preset("tiny")), Wav2Vec2.Config())
    scalars = initial(objective, [48000, 48000])
    assert 4.5 <= scalars["contrastive"] <= 4.9
    assert scalars["accuracy"] < 0.04
    chance = objective.chance()
    assert chance["contrastive"] == pytest.approx(math.log(101))
    assert chance["accuracy"] == pytest.approx(1 / 101)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_initial_loss_at_base(norm: str) -> None:
    torch.manual_seed(0)
    objective = Wav2Vec2(Backbone(preset("base", conv_norm=norm)), Wav2Vec2.Config())
    scalars = initial(objective, [80000] * 2 + [80320] * 2)
    assert 4.60 <= scalars["contrastive"] <= 4.75
    assert scalars["accuracy"] < 0.03


@pytest.mark.parametrize("backbone", [{}, GROUP], ids=["layer-pre", "group-post"])
def test_padding_changes_nothing(backbone: dict[str, Any]) -> None:
    objective = build(backbone).train()
    tight, loose = make_batch(objective, [9000]), make_batch(objective, [9000], pad=8000)
    one, other = objective(tight), objective(loose)
    torch.testing.assert_close(other.total, one.total, rtol=1e-5, atol=0)
    assert int(one.count) == int(other.count) == tight.num_targets


@pytest.mark.parametrize("backbone", [{}, GROUP], ids=["layer-pre", "group-post"])
def test_a_batch_is_the_sum_of_its_rows(backbone: dict[str, Any]) -> None:
    objective = build(backbone, diversity_weight=0.0).train()
    whole = objective(make_batch(objective, LENGTHS))
    turned = objective(make_batch(objective, LENGTHS[::-1]))
    single = [objective(make_batch(objective, [length])) for length in LENGTHS]
    torch.testing.assert_close(turned.total, whole.total, rtol=1e-5, atol=0)
    total = torch.stack([loss.total for loss in single]).sum()
    torch.testing.assert_close(total, whole.total, rtol=1e-5, atol=0)
    assert sum(int(loss.count) for loss in single) == int(whole.count)


def test_order_of_a_batch_changes_nothing_with_diversity() -> None:
    objective = build().train()
    one = objective(make_batch(objective, LENGTHS))
    other = objective(make_batch(objective, LENGTHS[::-1]))
    torch.testing.assert_close(other.total, one.total, rtol=1e-5, atol=0)


def test_a_batch_without_masked_frames_still_gives_a_graph() -> None:
    objective = build().train()
    batch = make_batch(objective, [1500, 1000])  # 4 and 2 frames: less than two spans
    assert batch.num_targets == 0
    loss = objective(batch)
    loss.total.backward()
    assert int(loss.count) == 0
    assert float(loss.total.detach()) == 0.0
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_histograms_give_perplexities() -> None:
    objective = build().train()
    scalars = objective.summary(objective(make_batch(objective, LENGTHS)).logs)
    assert 2 <= scalars["code_ppl"] <= 12 + 1e-3
    assert 2 <= scalars["prob_ppl"] <= 12 + 1e-3


def test_autocast_stays_close() -> None:
    objective = build().eval()
    batch = make_batch(objective, LENGTHS)
    exact = objective(batch).total.detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch).total.detach()
    assert rough.dtype == torch.float32
    assert float(rough) == pytest.approx(float(exact), rel=0.1)
