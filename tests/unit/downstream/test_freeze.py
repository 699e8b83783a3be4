"""Which parts of a backbone get gradients."""

import pytest
import torch

from speechssl.downstream.freeze import backbone_frames, freeze, freeze_features
from tests.unit.downstream.heads import make_batch, small_backbone


def grads(backbone):
    return {n.split(".")[0] for n, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("features_learn", "context_learns", "expected"),
    [
        (True, True, {"feature_extractor", "feature_projection", "encoder"}),
        (False, True, {"feature_projection", "encoder"}),
        (True, False, set()),  # nothing below a frozen context can learn
    ],
)
def test_gradients_reach_only_what_learns(features_learn, context_learns, expected):
    backbone = small_backbone()
    frames = backbone_frames(
        backbone, make_batch(), features_learn=features_learn, context_learns=context_learns
    )
    assert frames.x.requires_grad is context_learns
    (frames.x.sum() + torch.zeros(1, requires_grad=True).sum()).backward()
    assert grads(backbone) == expected


def test_no_grad_around_it_is_respected():
    with torch.no_grad():
        frames = backbone_frames(
            small_backbone(), make_batch(), features_learn=True, context_learns=True
        )
    assert not frames.x.requires_grad


def test_freezing_marks_parameters():
    backbone = small_backbone()
    freeze_features(backbone)
    names = {n.split(".")[0] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert names == {"feature_extractor"}
    freeze(backbone)
    assert not any(p.requires_grad for p in backbone.parameters())
