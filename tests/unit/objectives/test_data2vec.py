"""data2vec against a slow reference; its teacher, and what collapse looks like."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from speechssl.objectives.context_teacher import Decay
from speechssl.objectives.data2vec import Data2Vec
from speechssl.objectives.masking import SpanMask
from speechssl.types import Frames, Progress
from tests.reference import data2vec_ref
from tests.unit.objectives.masked import feed_forwards_by_hand, noise_batch, small_backbone


def build(network: dict[str, Any] | None = None, **settings: Any) -> Data2Vec:
    small = {"mask": SpanMask(0.5, 3), "top_layers": 2}
    return Data2Vec(small_backbone(**network or {}), Data2Vec.Config(**small | settings))


def moved(objective: Data2Vec) -> Data2Vec:
    """With other weights than its teacher, as if trained."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in objective.backbone.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=source))
    return objective


@pytest.mark.parametrize("network", [{"norm": "post", "pos_conv": "stack", "pos_kernel": 5}, {}])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_loss_and_gradients_equal_the_slow_reference(network: dict[str, Any], beta: float):
    objective = moved(build(network, beta=beta)).double()
    batch = noise_batch(objective)
    batch = replace(batch, wave=batch.wave.double())
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}

    objective.zero_grad()
    mask = batch.mask
    assert mask is not None
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    context = objective.backbone.context(z, mask)
    total = zero = torch.zeros((), dtype=torch.float64)
    for row, frames in enumerate(batch.frame_lens.tolist()):
        with torch.no_grad():
            alone = objective.backbone.project(Frames(z.x[row : row + 1, :frames], z.lens)).x
            layers = feed_forwards_by_hand(objective.teacher.network, alone)[-2:]
            wanted = data2vec_ref.targets([list(layer[0]) for layer in layers])
        for t in mask[row].nonzero()[:, 0].tolist():
            predicted = objective.head(context.x[row, t])
            total = total + data2vec_ref.frame_loss(predicted, wanted[t], beta)
            zero = zero + data2vec_ref.frame_loss(wanted[t] * 0, wanted[t], beta)
    total.backward()
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert float(loss.logs["zero_loss"].total) == pytest.approx(float(zero), rel=1e-6)
    assert int(loss.count) == int(mask.sum()) == batch.num_targets
    known = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    assert set(known) == {n for n, p in objective.named_parameters() if p.requires_grad}
    scale = max(float(g.abs().max()) for g in known.values())
    for name, grad in known.items():
        torch.testing.assert_close(got[name], grad, atol=1e-6 * scale, rtol=1e-6, msg=name)


@pytest.mark.parametrize("step", [0, 3, 10])
def test_the_teacher_follows_once_an_update_and_never_learns(step: int):
    objective = build(ema=Decay(0.5, 0.9, 10))
    student, teacher = objective.backbone.encoder, objective.teacher.network
    progress = Progress(step=step, max_steps=20)
    moved(objective)  # weights read after construction
    objective.begin_step(progress)
    reads = all(map(torch.equal, student.state_dict().values(), teacher.state_dict().values()))
    assert reads is (step == 0)
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    objective.train()
    loss = objective(noise_batch(objective))
    loss.total.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    optimizer.step()
    objective.after_step(replace(progress, step=step + 1))
    decay = data2vec_ref.decay(step, 0.5, 0.9, 10)
    assert objective.summary(loss.logs)["ema_decay"] == pytest.approx(decay)
    for name, theirs in student.state_dict().items():
        wanted = data2vec_ref.averaged(before[name], theirs, decay)
        if name.startswith("pos_conv_embed."):
            wanted = theirs
        torch.testing.assert_close(teacher.state_dict()[name], wanted, rtol=0, atol=1e-6, msg=name)


def test_targets_are_normalised_per_utterance_layer_and_channel_whatever_the_padding():
    objective = build().eval()
    with torch.no_grad():  # an untrained network this small has variances near the 1e-5 added
        for block in objective.teacher.network.layers:
            block.feed_forward.output_dense.weight.mul_(1000.0)  # type: ignore[union-attr, operator]
    batch = noise_batch(objective)
    valid = torch.arange(int(batch.frame_lens.max())) < batch.frame_lens[:, None]
    projected = objective.backbone.project(objective.backbone.encode(batch.wave, batch.wave_lens))
    together = objective.teacher.targets(projected, valid)
    assert together.shape == (2, int(batch.frame_lens.sum()), 16)
    for row, part in enumerate(together.split(batch.frame_lens.tolist(), dim=1)):
        assert float(part.mean(1).abs().max()) < 1e-5
        variance = part.var(1, unbiased=False)
        torch.testing.assert_close(variance, torch.ones(2, 16), rtol=0, atol=1e-3)
        alone = Frames(projected.x[row : row + 1, : batch.frame_lens[row]], batch.frame_lens[[row]])
        everywhere = torch.ones(alone.x.shape[:2], dtype=torch.bool)
        again = objective.teacher.targets(alone, everywhere)
        torch.testing.assert_close(part, again, rtol=0, atol=1e-4)


def test_neither_mask_nor_dropout_nor_layerdrop_reaches_the_targets():
    objective = build({"dropout": 0.5, "input_dropout": 0.5, "layerdrop": 0.9}).train()
    objective.begin_step(Progress(step=1, seed=1))
    assert objective.backbone.encoder.dropped
    batch = noise_batch(objective)

    def targets() -> Any:
        return objective(batch).logs["target_squares"].total

    first = targets()
    with torch.no_grad():
        objective.backbone.masked_spec_embed.add_(1.0)
    assert torch.equal(first, targets())
    with torch.no_grad():
        objective.teacher.network.layers[2].feed_forward.output_dense.weight.mul_(-1.0)
    assert not torch.equal(first, targets())


def test_untrained_targets_vary_as_theory_says():
    network = {"layers": 12, "norm": "post", "dim": 48, "ffn": 192, "conv_dims": (64,) * 7}
    objective = build(network, top_layers=8).eval()
    scores = objective.summary(objective(noise_batch(objective)).logs)
    # The mean of 8 normalised layers: between 1 / sqrt(8), none alike, and 1, all the same.
    assert 8**-0.5 - 0.02 < scores["target_var"] < 1.0
    assert scores["zero_loss"] == pytest.approx(48**0.5 * scores["target_var"] ** 2, rel=0.1)
    assert objective.chance() == {"explained": 0.0}


@pytest.mark.slow
def test_the_published_network_starts_where_the_original_does():
    stack = {"pos_conv": "stack", "pos_depth": 5, "pos_kernel": 19, "input_dropout": 0.0}
    torch.manual_seed(1)
    cfg = preset("base", conv_norm="layer", normalize=True, feature_dropout=0.0, **stack)
    objective = Data2Vec(Backbone(cfg), Data2Vec.Config()).eval()
    with torch.no_grad():
        scores = objective.summary(objective(noise_batch(objective, (64000, 48000))).logs)
    assert scores["target_var"] == pytest.approx(0.353, abs=0.02)
    assert scores["zero_loss"] == pytest.approx(3.46, abs=0.3)


@pytest.mark.parametrize("left", [0.0, 1e-3])
def test_a_collapsed_teacher_is_told_by_target_var(left: float):
    objective = build().eval()
    healthy = objective.summary(objective(noise_batch(objective)).logs)
    assert healthy["target_var"] > 0.3
    with torch.no_grad():
        for block in objective.teacher.network.layers:
            block.feed_forward.output_dense.weight.mul_(left)  # frames nearly alike
        objective.head.weight.zero_()
    collapsed = objective.summary(objective(noise_batch(objective)).logs)
    assert collapsed["target_var"] < 0.1
    assert collapsed["pred_var"] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beta": -0.1}, "objective.beta: got -0.1"),
        ({"top_layers": 0}, "objective.top_layers: got 0, expected 1 to 3"),
        ({"top_layers": 4}, "objective.top_layers: got 4, expected 1 to 3"),
        ({"network": {"block": "conformer"}}, "backbone.block 'conformer'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        build(**settings)


def test_a_backbone_without_attention_is_refused():
    backbone = Backbone(preset("wav2vec-tiny"))
    with pytest.raises(ConfigError, match="backbone.context is 'conv'"):
        Data2Vec(backbone, Data2Vec.Config())


@pytest.mark.parametrize("settings", [{"start": 1.1}, {"end": -0.1}, {"steps": -1}])
def test_a_decay_that_is_none_is_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="objective.ema: got"):
        Decay(**settings)
