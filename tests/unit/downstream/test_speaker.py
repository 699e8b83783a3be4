"""The speaker head: margins by formula, pooling, freezing."""

import math

import pytest
import torch
import torch.nn.functional as F

from speechssl.downstream.speaker import Speaker, with_margin
from speechssl.errors import ConfigError, DataError
from speechssl.models.backbone import build_backbone
from speechssl.models.presets import preset
from tests.unit.downstream.heads import make_batch, small_backbone

NAMES = ("ann", "bob", "cy")


def small_speaker(backbone=None, **settings):
    return Speaker(backbone or small_backbone(), Speaker.Config(**settings), NAMES)


def batch(speakers=(0, 2), **options):
    return make_batch(speakers=torch.tensor(speakers), **options)


@pytest.mark.parametrize("kind", ["am_softmax", "aam_softmax"])
def test_no_margin_and_scale_one_is_the_cosine_softmax(kind):
    head = small_speaker(loss=kind, margin=0.0, scale=1.0, proj_dim=8).eval()
    data = batch()
    vectors = F.normalize(head.embed(data), dim=1)
    cosine = vectors @ F.normalize(head.classifier.weight, dim=1).T
    expected = F.cross_entropy(cosine, data.speakers, reduction="sum")
    torch.testing.assert_close(head(data).total, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["am_softmax", "aam_softmax"])
def test_loss_rises_with_the_margin(kind):
    cosine = torch.rand(16, 5) * 2 - 1
    target = torch.arange(16) % 5
    losses = [
        F.cross_entropy(30 * with_margin(cosine, target, kind, m), target).item()
        for m in (0.0, 0.1, 0.2, 0.4, 0.8)
    ]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_additive_margin_touches_the_target_alone():
    cosine = torch.tensor([[0.3, -0.2, 0.9]])
    got = with_margin(cosine, torch.tensor([2]), "am_softmax", 0.4)
    torch.testing.assert_close(got, torch.tensor([[0.3, -0.2, 0.5]]))
    assert with_margin(cosine, torch.tensor([2]), "softmax", 0.4) is cosine


def test_angular_margin_by_formula_with_its_fallback():
    margin = 0.2
    angles = torch.tensor([0.3, 1.2, 2.5, math.pi - 0.21, math.pi - 0.19, 3.1])
    got = with_margin(
        angles.cos()[:, None], torch.zeros(6, dtype=torch.long), "aam_softmax", margin
    )
    limit = math.cos(math.pi - margin)
    assert limit == pytest.approx(-0.980, abs=1e-3)
    assert margin * math.sin(math.pi - margin) == pytest.approx(0.0397, abs=1e-4)
    expected = torch.where(
        angles.cos() > limit, (angles + margin).cos(), angles.cos() - 0.2 * math.sin(0.2)
    )
    torch.testing.assert_close(got[:, 0], expected, atol=1e-6, rtol=0)
    assert (angles.cos() > limit).tolist() == [True] * 4 + [False] * 2


def test_angular_margin_is_finite_at_the_ends_with_gradient():
    cosine = torch.tensor([[1.0, -1.0], [1.0, -1.0]], requires_grad=True)
    with_margin(cosine, torch.tensor([0, 1]), "aam_softmax", 0.2).sum().backward()
    assert cosine.grad is not None
    assert cosine.grad.isfinite().all()


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_embedding_does_not_depend_on_padding(pooling):
    head = small_speaker(pooling=pooling, proj_dim=8).eval()
    both = batch(seconds=(0.6, 0.3))
    vectors = head.embed(both)
    assert vectors.shape == (2, 16 if pooling == "mean_std" else 8)
    alone = batch((2,), seconds=(0.3,))
    alone.wave = both.wave[1:, : int(both.wave_lens[1])]
    torch.testing.assert_close(head.embed(alone), vectors[1:], atol=1e-5, rtol=1e-4)


def learners(head):
    head.train()
    head(batch()).total.backward()
    return {n.split(".")[0] for n, p in head.named_parameters() if p.grad is not None}


def test_frozen_probe_trains_its_head_only_in_evaluation_mode():
    head = small_speaker(small_backbone(dropout=0.5, layerdrop=0.5))
    assert learners(head) == {"layer_weights", "projector", "classifier"}
    assert not head.backbone.training
    assert not any(p.requires_grad for p in head.backbone.parameters())
    torch.testing.assert_close(head(batch()).total, head(batch()).total)


def test_full_fine_tuning_reaches_the_backbone():
    head = small_speaker(frozen=False, layers="last")
    assert learners(head) == {"backbone", "projector", "classifier"}
    assert head.backbone.training
    extractor = head.backbone.feature_extractor.parameters()
    assert all(p.grad is None and not p.requires_grad for p in extractor)


def test_log_mel_runs_under_the_same_probe():
    head = Speaker(build_backbone(preset("logmel")), Speaker.Config(), NAMES)
    assert {"projector", "classifier"} <= learners(head)


def test_logs_and_predictions_agree():
    head = small_speaker().eval()
    data = batch((0, 2))
    names = head.predict(data)
    loss = head(data)
    right = sum(name == NAMES[i] for name, i in zip(names, (0, 2), strict=True))
    assert loss.logs["accuracy"] == (torch.tensor(right), torch.tensor(2))
    assert loss.count == 2
    entropy = head.summary(loss.logs)["layer_entropy"]
    assert entropy == pytest.approx(math.log(head.backbone.num_layers + 1), abs=1e-5)
    assert head.chance() == {"accuracy": 1 / 3, "loss": math.log(3)}


@pytest.mark.parametrize("index", [-1, 3])
def test_unknown_speakers_are_refused(index):
    with pytest.raises(DataError, match="'u1' has speaker index"):
        small_speaker()(batch((0, index)))


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        Speaker(small_backbone(), Speaker.Config(), ("ann",))
    with pytest.raises(ConfigError, match="margin"):
        Speaker.Config(margin=2.0)
    with pytest.raises(ConfigError, match="norm 'layer' is for"):
        Speaker.Config(layers="last", norm="layer")
    with pytest.raises(DataError, match="no speakers"):
        small_speaker()(make_batch())


def test_cosines_stay_float32_under_autocast():
    head = small_speaker(loss="aam_softmax").eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data = batch()
        scores = head.logits(head.embed(data))
        loss = head(data)
    assert scores.dtype == torch.float32
    assert loss.total.dtype == torch.float32
    assert loss.total.isfinite()
