"""w2v-BERT against a slow reference; which loss reaches what, and what a collapse looks like."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.w2vbert import W2vBert
from speechssl.types import Batch, Progress
from tests.reference import w2vbert_ref
from tests.unit.objectives.test_wav2vec2 import make_batch, reference

SHAPE: dict[str, Any] = {
    "conv_dims": (8,) * 7,
    "dim": 16,
    "layers": 3,
    "heads": 2,
    "ffn": 16,
    "pos_kernel": 8,
    "pos_groups": 4,
    "dropout": 0.0,
    "block": "conformer",
    "block_kernel": 5,
    "block_dropout": 0.0,
}
SMALL: dict[str, Any] = {
    "num_negatives": 5,
    "final_dim": 8,
    "codes": 6,
    "code_dim": 8,
    "mask": SpanMask(0.65, 3),
}
LENGTHS = [9000, 16000, 7000]


def build(backbone: dict[str, Any] | None = None, **settings: Any) -> W2vBert:
    torch.manual_seed(3)
    network = Backbone(preset("tiny", **SHAPE | (backbone or {})))
    return W2vBert(network, W2vBert.Config(**SMALL | settings))


def gradients(objective: W2vBert, batch: Batch) -> dict[str, Tensor]:
    objective.zero_grad()
    objective(batch).total.backward()
    return {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


def moved_by(gradient: dict[str, Tensor], *parts: str) -> list[bool]:
    """Whether any gradient of the parameters of each part is not zero."""
    return [any(bool(g.any()) for n, g in gradient.items() if n.startswith(part)) for part in parts]


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("inner", [1, 2])
def test_loss_and_gradients_equal_the_reference(train: bool, groups: int, inner: int):
    objective = build(
        groups=groups,
        contrastive_layers=inner,
        contrastive_weight=0.7,
        masked_weight=1.3,
        penalty_weight=2.0,
    )
    objective = objective.double().train(train)
    objective.begin_step(Progress(step=0))
    batch = make_batch(objective, LENGTHS)
    batch.wave = batch.wave.double()
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}

    objective.zero_grad()
    mask = batch.mask
    assert mask is not None
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    local = objective.backbone.features(z)
    context = objective.backbone.context(z, mask, layers=True)
    parts = reference(objective, batch, context.layers[inner])
    chooser, head = objective.quantizer.weight_proj, objective.head
    masked_loss = torch.zeros((), dtype=torch.float64)
    for row, frame in mask.nonzero().tolist():
        wanted = w2vbert_ref.codes(local[row, frame], chooser.weight, chooser.bias, groups)
        masked_loss = masked_loss + w2vbert_ref.frame_loss(
            context.x[row, frame], head.weight, head.bias, wanted
        )
    total = 0.7 * parts.total + 1.3 * masked_loss
    total.backward()
    assert int(loss.count) == parts.count == batch.num_targets > 20
    for name, slow in (("contrastive", parts.contrastive), ("masked_loss", masked_loss)):
        torch.testing.assert_close(loss.logs[name].total.double(), slow.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.total.double(), total, rtol=1e-6, atol=0)
    scale = max(float(p.grad.abs().max()) for p in objective.parameters() if p.grad is not None)
    for name, parameter in objective.named_parameters():
        if parameter.grad is None:
            assert not got.get(name, torch.zeros(1)).any(), name
            continue
        torch.testing.assert_close(
            got[name], parameter.grad, rtol=1e-4, atol=1e-6 * scale, msg=name
        )


def test_each_loss_reaches_its_own_parts():
    blocks = [f"backbone.encoder.layers.{i}." for i in range(3)]
    learners = ["quantizer.", "project_q.", "project_hid.", "head."]
    batch = make_batch(build(), LENGTHS)
    objective = build(contrastive_layers=2, masked_weight=0.0).train()
    found = moved_by(gradients(objective, batch), *blocks, *learners)
    assert found == [True, True, False, True, True, True, False]
    objective = build(contrastive_layers=2, contrastive_weight=0.0).train()
    found = moved_by(gradients(objective, batch), *blocks, *learners)
    assert found == [True, True, True, False, False, False, True]
    assert set(gradients(objective, batch)) == {n for n, _ in objective.named_parameters()}


def test_the_contrastive_loss_reads_the_output_of_its_block():
    batch = make_batch(build(), LENGTHS)

    def parts(changed: int | None) -> tuple[float, float]:
        objective = build(contrastive_layers=2).eval()
        if changed is not None:
            block = objective.backbone.encoder.get_submodule(f"layers.{changed}.ffn2")
            for parameter in block.parameters():
                nn.init.normal_(parameter)
        logs = objective(batch).logs
        return float(logs["contrastive"].total), float(logs["masked_loss"].total)

    plain = parts(None)
    for block, reached in ((0, True), (1, True), (2, False)):
        contrastive, masked = parts(block)
        assert (contrastive != plain[0]) is reached
        assert masked != plain[1]


def test_the_codes_to_name_hear_neither_noise_nor_mask():
    objective = build().train()
    batch = make_batch(objective, LENGTHS)
    first = objective(batch).logs
    noisy = objective(replace(batch, seeds=(7, 8, 9))).logs
    objective.backbone.masked_spec_embed.data.add_(1.0)
    hidden = objective(batch).logs
    assert not torch.equal(first["code_hist"].total, noisy["code_hist"].total)
    assert torch.equal(first["target_hist"].total, noisy["target_hist"].total)
    assert torch.equal(first["target_hist"].total, hidden["target_hist"].total)
    assert int(first["target_hist"].total.sum()) == batch.num_targets
    assert float(first["masked_loss"].total) != float(hidden["masked_loss"].total)
    quiet = objective.eval()(batch).logs
    assert torch.equal(quiet["target_hist"].total, quiet["code_hist"].total)


def test_collapsed_codes_cost_nothing_and_are_told():
    objective = build().eval()
    nn.init.zeros_(objective.quantizer.weight_proj.weight)
    objective.quantizer.weight_proj.bias.data[2] = 100.0
    objective.head.bias.data[2] = 100.0
    scores = objective.summary(objective(make_batch(objective, LENGTHS)).logs)
    assert scores["masked_loss"] == pytest.approx(0.0, abs=1e-6)
    assert scores["masked_accuracy"] == 1.0
    assert scores["target_ppl"] == pytest.approx(1.0, abs=1e-4)
    assert scores["target_top_share"] == 1.0
    assert scores["target_usage"] == pytest.approx(1 / 6)
    assert scores["code_ppl"] == pytest.approx(1.0, abs=1e-4)


def test_untrained_losses_are_near_those_of_guessing():
    torch.manual_seed(0)
    network = Backbone(preset("tiny", layers=2, block="conformer"))
    objective = W2vBert(network, W2vBert.Config()).train()
    assert objective.contrastive_layers == 1
    objective.begin_step(Progress(step=0))
    with torch.no_grad():
        scores = objective.summary(objective(make_batch(objective, [48000, 48000])).logs)
    chance = objective.chance()
    assert chance["contrastive"] == pytest.approx(math.log(101))
    assert chance["masked_loss"] == pytest.approx(math.log(1024))
    assert chance["masked_accuracy"] == 1 / 1024
    assert scores["contrastive"] == pytest.approx(chance["contrastive"], abs=0.25)
    assert scores["masked_loss"] == pytest.approx(chance["masked_loss"], abs=0.4)
    assert scores["masked_accuracy"] < 0.05


def test_a_batch_without_masked_frames_still_gives_a_graph():
    objective = build().train()
    batch = make_batch(objective, [1500, 1000])  # 4 and 2 frames: less than two spans
    found = gradients(objective, batch)
    assert set(found) == {n for n, _ in objective.named_parameters()}
    assert not any(g.any() for g in found.values())


def test_half_of_the_blocks_are_contrastive_unless_said():
    assert build({"layers": 6}).contrastive_layers == 3
    assert build({"layers": 5}).contrastive_layers == 2
    assert build({"layers": 6}, contrastive_layers=5).contrastive_layers == 5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"contrastive_layers": -1}, "contrastive_layers: got -1"),
        ({"contrastive_layers": 3}, "got 3 of backbone.layers 3"),
        ({"backbone": {"layers": 1}}, "got 0 of backbone.layers 1"),
        ({"backbone": {"layerdrop": 0.1}}, "backbone.layerdrop is 0.1, expected 0"),
        ({"masked_weight": -1.0}, "masked_weight -1"),
        ({"groups": 3}, "code_dim 8 must be a multiple of groups 3"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        build(**settings)
