"""HuBERT against a slow reference; what its loss must not depend on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from speechssl.errors import ConfigError
from speechssl.objectives.hubert import Hubert
from speechssl.objectives.masking import SpanMask
from speechssl.types import Batch
from tests.reference import hubert_ref
from tests.unit.objectives.masked import noise_batch, small_backbone

CLUSTERS = tuple(f"c/{k}" for k in range(7))


def build(clusters: tuple[str, ...] = CLUSTERS, **settings: Any) -> Hubert:
    small = {"mask": SpanMask(0.5, 3), "final_dim": 6}
    return Hubert(small_backbone(), Hubert.Config(**small | settings), clusters)


def make_batch(objective: Hubert) -> Batch:
    """Noise with random labels."""
    batch, source = noise_batch(objective), torch.Generator().manual_seed(1)
    assert batch.mask is not None
    labels = torch.randint(
        len(CLUSTERS), (*batch.mask.shape, objective.labels_per_frame), generator=source
    )
    frames = torch.arange(labels.shape[1])
    labels[frames >= batch.frame_lens[:, None]] = -100
    return replace(batch, labels=labels)


@pytest.mark.parametrize("parts", [1, 2])
def test_loss_and_gradients_equal_the_slow_reference(parts: int):
    objective = build(labels_per_frame=parts, penalty_weight=3.0).double()
    batch = make_batch(objective)
    batch = replace(batch, wave=batch.wave.double())
    loss = objective(batch)
    loss.total.backward()
    got = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}

    objective.zero_grad()
    mask, labels = batch.mask, batch.labels
    assert mask is not None
    assert labels is not None
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    context = objective.backbone.context(z, mask)
    total = torch.zeros((), dtype=torch.float64)
    for row, frames in enumerate(batch.frame_lens.tolist()):
        for frame in mask[row].nonzero()[:, 0].tolist():
            projected = objective.head(context.x[row, frame]).view(parts, -1)
            for part in range(parts):
                total = total + (
                    hubert_ref.frame_loss(
                        projected[part], objective.label_embs, int(labels[row, frame, part]), 0.1
                    )
                    / parts
                )
        total = total + 3.0 * mask[row].sum() * z.x[row, :frames].square().mean()
    total.backward()
    # The library's softmaxes run in single precision, whatever the weights are.
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    assert int(loss.count) == int(mask.sum()) == batch.num_targets
    wanted = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, atol=1e-6 * scale, rtol=1e-4, msg=name)


def test_a_linear_head_scores_every_cluster_by_a_map_of_its_own():
    objective = build(head="linear", temperature=2.0, penalty_weight=0.0)
    batch = make_batch(objective)
    assert batch.mask is not None
    assert batch.labels is not None
    z = objective.backbone.encode(batch.wave, batch.wave_lens)
    c = objective.backbone.context(z, batch.mask).x[batch.mask]
    wanted = torch.nn.functional.cross_entropy(
        objective.head(c) / 2.0, batch.labels[batch.mask][:, 0], reduction="sum"
    )
    torch.testing.assert_close(objective(batch).total, wanted)
    assert not hasattr(objective, "label_embs")


def test_labels_of_visible_frames_and_of_padding_play_no_part():
    objective = build()
    batch = make_batch(objective)
    assert batch.mask is not None
    assert batch.labels is not None
    elsewhere = torch.where(batch.mask[..., None], batch.labels, (batch.labels + 3) % 7)
    assert torch.equal(objective(batch).total, objective(replace(batch, labels=elsewhere)).total)
    moved = batch.labels.clone()
    moved[0, batch.mask[0].nonzero()[0, 0]] += 1
    moved %= len(CLUSTERS)
    assert not torch.equal(objective(batch).total, objective(replace(batch, labels=moved)).total)


def test_untrained_loss_is_near_that_of_guessing():
    objective = build(clusters=tuple(f"c/{k}" for k in range(100)), final_dim=256)
    scores = objective.eval().summary(objective(make_batch(objective)).logs)
    # Cosines to embeddings drawn from [0, 1) lie close together: a base network has ln K + 0.04.
    assert math.log(100) - 0.1 < scores["masked_loss"] < math.log(100) + 0.3
    assert objective.chance()["masked_loss"] == math.log(100)
    assert 0 <= scores["accuracy_unmasked"] <= 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": 0.0}, "temperature 0"),
        ({"labels_per_frame": 0}, "labels_per_frame 0"),
        ({"final_dim": 0}, "final_dim 0"),
        ({"clusters": ("c/0",)}, "got 1 clusters"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        build(**settings)
