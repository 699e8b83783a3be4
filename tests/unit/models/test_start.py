"""Starting from a model: the backbone always, the head where it is the same."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechssl.downstream.ctc import CTC
from speechssl.errors import CheckpointError
from speechssl.models.bundle import backbone_config, save_bundle
from speechssl.models.start import start_from
from speechssl.objectives.wav2vec2 import Wav2Vec2
from tests.unit.downstream.heads import VOCABULARY, small_backbone


def ctc(seed, classes=VOCABULARY, **sizes):
    torch.manual_seed(seed)
    return CTC(small_backbone(**sizes), CTC.Config(), classes)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def model(tmp_path):
    save_bundle(tmp_path / "model", ctc(1), card={})
    return tmp_path / "model"


def test_the_same_head_goes_on(model):
    objective = ctc(2)
    assert start_from(objective, model) == "head from the same model"
    assert same(objective, ctc(1))


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (lambda: ctc(2, (*VOCABULARY, "D")), "for 5 other classes"),
        (lambda: ctc(2, (*VOCABULARY[:-1], "D")), "for 5 other classes"),
        (lambda: Wav2Vec2(small_backbone(), Wav2Vec2.Config()), "the model's is for ctc"),
    ],
)
def test_another_head_starts_from_random(model, objective, why):
    objective = objective()
    heads = {k: v.clone() for k, v in objective.state_dict().items() if "backbone" not in k}
    told = start_from(objective, model)
    assert told.startswith("head from random: ")
    assert why in told
    assert same(objective.backbone, ctc(1).backbone)
    assert all(torch.equal(objective.state_dict()[k], v) for k, v in heads.items())


def test_a_bare_backbone(tmp_path):
    save_bundle(tmp_path / "model", ctc(1).backbone, card={})
    objective = ctc(2)
    assert start_from(objective, tmp_path / "model") == "head from random: the model has none"
    assert same(objective.backbone, ctc(1).backbone)


def test_plain_folders_of_transformers(model):
    """Ours without our own table, and with the names of older versions of torch."""
    config = json.loads((model / "config.json").read_text())
    del config["speechssl"]
    (model / "config.json").write_text(json.dumps(config))
    weights = load_file(model / "model.safetensors")
    stem = "wav2vec2.encoder.pos_conv_embed.conv."
    for ours, theirs in (("original0", "weight_g"), ("original1", "weight_v")):
        weights[stem + theirs] = weights.pop(f"{stem}parametrizations.weight.{ours}")
    save_file(weights, model / "model.safetensors")
    assert backbone_config(model).preset == "huggingface"
    objective = ctc(2)
    assert start_from(objective, model) == "head from the same model"
    assert same(objective, ctc(1))


def test_another_shape_is_refused(model):
    with pytest.raises(CheckpointError, match=r"expected \(64, 32\)"):
        start_from(ctc(2, ffn=64), model)
