"""A model folder of ours is a Hugging Face folder: same keys, same outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.downstream.ctc import CTC
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import load_bundle, save_bundle
from speechssl.models.presets import BackboneConfig
from speechssl.objectives.wav2vec2 import Wav2Vec2

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.interop

CLASSES = ("<pad>", "|", "A", "B", "'")


def config(conv_norm: str, norm: str) -> BackboneConfig:
    return BackboneConfig(
        preset="test",
        normalize=conv_norm == "layer",
        conv_dims=(16, 16, 24),
        conv_kernels=(10, 3, 2),
        conv_strides=(5, 2, 2),
        conv_bias=conv_norm == "layer",
        conv_norm=conv_norm,  # type: ignore[arg-type]
        dim=32,
        layers=3,
        heads=4,
        ffn=48,
        norm=norm,  # type: ignore[arg-type]
        pos_kernel=8,
        pos_groups=4,
    )


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random: an affine that starts at one or zero hides a swapped name."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.05)
    return model.eval()


def wave(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def read(cls, folder: Path):
    model, about = cls.from_pretrained(folder, output_loading_info=True)
    keys = [
        k for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for k in about[name]
    ]
    assert keys == []
    return model.eval()


def prepared(folder: Path, *waves: torch.Tensor):
    """What their own feature extractor, read from our folder, makes of the waves."""
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    arrays = [w[0].numpy() for w in waves]
    return extractor(arrays, sampling_rate=16000, padding=True, return_tensors="pt")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("conv_norm", ["group", "layer"])
@pytest.mark.parametrize("norm", ["post", "pre"])
@torch.no_grad()
def test_every_hidden_state_is_equal(tmp_path: Path, conv_norm: str, norm: str):
    ours = shaken(Backbone(config(conv_norm, norm)))
    save_bundle(tmp_path / "model", ours, card={})
    theirs = read(transformers.Wav2Vec2Model, tmp_path / "model")
    x = wave(1234)
    expected = theirs(**prepared(tmp_path / "model", x), output_hidden_states=True)
    got = ours(x, torch.tensor([1234]), layers=True)
    assert len(got.layers) == len(expected.hidden_states) == 4
    for mine, other in zip(got.layers[:-1], expected.hidden_states[:-1], strict=True):
        close(mine, other)
    # Their last hidden state lacks the final norm of pre-norm models; ours is what comes out.
    close(got.layers[-1], expected.last_hidden_state)
    close(ours.features(ours.encode(x, torch.tensor([1234]))), expected.extract_features)


@pytest.mark.parametrize("norm", ["post", "pre"])
@torch.no_grad()
def test_padded_batches_are_equal_in_layer_mode(tmp_path: Path, norm: str):
    ours = shaken(Backbone(config("layer", norm)))
    save_bundle(tmp_path / "model", ours, card={})
    theirs = read(transformers.Wav2Vec2Model, tmp_path / "model")
    long, short = wave(1600), wave(900, seed=1)
    inputs = prepared(tmp_path / "model", long, short)
    assert "attention_mask" in inputs
    expected = theirs(**inputs).last_hidden_state
    padded = torch.zeros(2, 1600)
    padded[0], padded[1, :900] = long, short
    got = ours(padded, torch.tensor([1600, 900]))
    for row, length in enumerate(got.lens.tolist()):
        close(got.x[row, :length], expected[row, :length])


@torch.no_grad()
def test_ctc_folder_works_with_model_and_processor(tmp_path: Path):
    cfg = CTC.Config()
    ours = shaken(CTC(Backbone(config("layer", "pre")), cfg, CLASSES))
    save_bundle(tmp_path / "model", ours, card={})
    theirs = read(transformers.Wav2Vec2ForCTC, tmp_path / "model")
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "model")
    x = wave(1500)
    logits = theirs(**processor(x[0].numpy(), sampling_rate=16000, return_tensors="pt")).logits
    state = ours.backbone(x, torch.tensor([1500]))
    close(ours.lm_head(state.x), logits)
    assert processor.batch_decode(torch.tensor([[0, 2, 2, 0, 2, 1, 1, 3, 4]])) == ["AA B'"]
    assert processor.tokenizer("AB A").input_ids == [2, 3, 1, 2]
    assert len(processor.tokenizer) == len(CLASSES)


@torch.no_grad()
def test_pretraining_folder_has_all_their_keys(tmp_path: Path):
    cfg = Wav2Vec2.Config(groups=2, codes=8, code_dim=12, final_dim=10, logit_temperature=0.2)
    ours = shaken(Wav2Vec2(Backbone(config("layer", "pre")), cfg))
    save_bundle(tmp_path / "model", ours, card={})
    theirs = read(transformers.Wav2Vec2ForPreTraining, tmp_path / "model")
    x = wave(1500)
    out = theirs(**prepared(tmp_path / "model", x))
    frames = ours.backbone(x, torch.tensor([1500]))
    close(ours.project_hid(frames.x), out.projected_states)
    q = ours.quantizer(ours.backbone.features(ours.backbone.encode(x, torch.tensor([1500])))[0])
    close(ours.project_q(q.vectors)[None], out.projected_quantized_states)
    config_ = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config_["contrastive_logits_temperature"] == 0.2


@pytest.mark.parametrize(("conv_norm", "norm"), [("group", "post"), ("layer", "pre")])
@torch.no_grad()
def test_a_folder_of_theirs_loads(tmp_path: Path, conv_norm: str, norm: str):
    theirs = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            conv_dim=(16, 24), conv_kernel=(10, 3), conv_stride=(5, 2), conv_bias=norm == "pre",
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, vocab_size=len(CLASSES),
            feat_extract_norm=conv_norm, do_stable_layer_norm=norm == "pre",
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    bundle = load_bundle(tmp_path)
    x = wave(999)
    close(bundle.backbone(x, torch.tensor([999])).x, theirs.wav2vec2(x).last_hidden_state)
    assert bundle.objective is None  # no vocabulary, so no use for the head

    vocabulary = {token: i for i, token in enumerate(CLASSES)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    bundle = load_bundle(tmp_path)
    assert bundle.classes == CLASSES
    assert isinstance(bundle.objective, CTC)
    close(bundle.objective.lm_head(bundle.backbone(x, torch.tensor([999])).x), theirs(x).logits)
    assert np.isfinite(bundle.objective.lm_head.weight.numpy()).all()
