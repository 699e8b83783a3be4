"""A model folder of ours is a Hugging Face folder: same keys, same outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.downstream.ctc import CTC
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import backbone_config, load_bundle, save_bundle
from speechssl.models.presets import BackboneConfig
from speechssl.models.start import start_from
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.types import Batch
from tests.interop.shaken import shaken

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


SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 24), "conv_kernel": (10, 3), "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    ("conv_norm", "norm", "bias"),
    [("group", "post", False), ("layer", "pre", False), ("layer", "pre", True)],
)
@torch.no_grad()
def test_a_hubert_folder_loads(tmp_path: Path, conv_norm: str, norm: str, bias: bool, safe: bool):
    about = transformers.HubertConfig(
        **SIZES, conv_bias=bias, feat_extract_norm=conv_norm, vocab_size=len(CLASSES),
        do_stable_layer_norm=norm == "pre",
    )  # fmt: skip
    theirs = shaken(transformers.HubertForCTC(about))
    theirs.save_pretrained(tmp_path)
    if not safe:
        torch.save(old_names(theirs.state_dict()), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    vocabulary = {token: i for i, token in enumerate(CLASSES)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    bundle = load_bundle(tmp_path)
    assert isinstance(bundle.objective, CTC)
    x = wave(999)
    states = bundle.backbone(x, torch.tensor([999]), layers=True)
    expected = theirs.hubert(x, output_hidden_states=True)
    for mine, other in zip(states.layers[:-1], expected.hidden_states[:-1], strict=True):
        close(mine, other)
    close(states.x, expected.last_hidden_state)
    close(bundle.objective.lm_head(states.x), theirs(x).logits)
    # What we write of it is a Wav2Vec2 folder, which computes the same, unless asked otherwise.
    save_bundle(tmp_path / "ours", bundle.objective, card={})
    close(read(transformers.Wav2Vec2ForCTC, tmp_path / "ours")(x).logits, theirs(x).logits)


def old_names(weights):
    """As torch.nn.utils.weight_norm named them before parametrisations."""
    renamed = {"original0": "weight_g", "original1": "weight_v"}
    found = {}
    for key, value in weights.items():
        stem, _, last = key.rpartition(".parametrizations.weight.")
        found[f"{stem}.{renamed[last]}" if stem else key] = value
    return found


@pytest.fixture
def pretraining(tmp_path: Path):
    """Their pre-training model, and the folder it saved."""
    about = transformers.Wav2Vec2Config(
        **SIZES, conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True,
        num_codevectors_per_group=6, codevector_dim=12, proj_codevector_dim=10, num_negatives=7,
        contrastive_logits_temperature=0.2, diversity_loss_weight=0.3, hidden_dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0,
        feat_quantizer_dropout=0.0, apply_spec_augment=True, mask_time_prob=0.5,
    )  # fmt: skip
    theirs = shaken(transformers.Wav2Vec2ForPreTraining(about))
    theirs.save_pretrained(tmp_path / "theirs")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    extractor.save_pretrained(tmp_path / "theirs")
    return theirs, tmp_path / "theirs"


@torch.no_grad()
def test_their_pretraining_model_has_the_same_loss_here(pretraining):
    theirs, folder = pretraining
    bundle = load_bundle(folder)
    ours = bundle.objective
    assert isinstance(ours, Wav2Vec2)
    assert (ours.cfg.codes, ours.cfg.num_negatives, ours.cfg.logit_temperature) == (6, 7, 0.2)
    lens = torch.tensor([1600, 1100])
    waves = torch.zeros(2, 1600)
    waves[0], waves[1, :1100] = wave(1600)[0], wave(1100, seed=1)[0]
    frames = torch.as_tensor(ours.backbone.geometry.frames(lens))
    rngs = [np.random.default_rng(i) for i in range(2)]
    plan = Wav2Vec2.plan(
        Wav2Vec2.Config(mask=SpanMask(0.5, 4), num_negatives=7), 32, frames.numpy(), rngs, False
    )
    mask, negatives = torch.tensor(plan.mask), torch.tensor(plan.negatives)
    batch = Batch(["a", "b"], waves, lens, frames, plan.num_targets, mask=mask, negatives=negatives)
    found = ours(batch)
    # Their negatives are places in the flattened batch, of all frames.
    time = mask.shape[1]
    places = torch.zeros(2, time, 7, dtype=torch.long)
    start = 0
    for row in range(2):
        at = mask[row].nonzero()[:, 0]
        own = negatives[start : start + len(at)]
        places[row, at] = at[own] + row * time
        start += len(at)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    inputs = extractor(
        [waves[0].numpy(), waves[1, :1100].numpy()],
        sampling_rate=16000, padding=True, return_tensors="pt",
    )  # fmt: skip
    expected = theirs(**inputs, mask_time_indices=mask, sampled_negative_indices=places)
    mean = found.logs["contrastive"].total / found.count
    close(mean, expected.contrastive_loss / mask.sum())
    # Their diversity is that of the softmax only while training, as ours always is.
    drawn = theirs.train()(**inputs, mask_time_indices=mask, sampled_negative_indices=places)
    close(found.logs["diversity"].total / found.count, drawn.diversity_loss / mask.sum())


def test_their_pretraining_model_goes_on_here(pretraining):
    _, folder = pretraining
    ours = Wav2Vec2(
        Backbone(backbone_config(folder)),
        Wav2Vec2.Config(groups=2, codes=6, code_dim=12, final_dim=10),
    )
    assert start_from(ours, folder) == "head from the same model"
    torch.testing.assert_close(
        ours.state_dict(), load_bundle(folder).objective.state_dict(), rtol=0, atol=0
    )
    other = Wav2Vec2(Backbone(backbone_config(folder)), Wav2Vec2.Config())
    assert "other sizes" in start_from(other, folder)
