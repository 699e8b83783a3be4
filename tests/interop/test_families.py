"""Hubert, WavLM and data2vec of `transformers` here and back: same tensors, same states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchaudio

from speechssl.cli.main import main
from speechssl.downstream.ctc import CTC
from speechssl.downstream.speaker import Speaker
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.convert import compare_with_torchaudio, torchaudio_sizes, write_foreign
from speechssl.models.backbone import Backbone
from speechssl.models.blocks.attention import relative_bucket
from speechssl.models.bundle import load, save_bundle
from speechssl.models.formats.foreign import read_foreign
from speechssl.models.formats.hf_config import family
from speechssl.models.formats.stored import as_model
from speechssl.models.presets import BackboneConfig, preset
from speechssl.types import Batch
from tests.interop.shaken import shaken

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.interop

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 16, 24), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
STACK = {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}
NEAR = {"conv_depthwise_kernel_size": 5, "hidden_act": "swish"}
#: Name -> class of their bare model, and what the config says beyond SIZES.
FAMILIES = {
    "wav2vec2-group": ("Wav2Vec2", GROUP),
    "wav2vec2-layer": ("Wav2Vec2", LAYER),
    "hubert-group": ("Hubert", GROUP),
    "hubert-layer": ("Hubert", LAYER),
    "hubert-options": (
        "Hubert",
        LAYER | {"feat_proj_layer_norm": False, "conv_pos_batch_norm": True},
    ),
    "wavlm-group": ("WavLM", GROUP | {"num_buckets": 16, "max_bucket_distance": 20}),
    "wavlm-layer": ("WavLM", LAYER | {"num_buckets": 16, "max_bucket_distance": 20}),
    "data2vec": ("Data2VecAudio", STACK),
    "data2vec-bias": ("Data2VecAudio", STACK | {"conv_bias": True}),
    "conformer-relative": (
        "Wav2Vec2Conformer",
        NEAR | {"position_embeddings_type": "relative", "feat_extract_norm": "group"},
    ),
    "conformer-rotary": (
        "Wav2Vec2Conformer",
        NEAR | {"position_embeddings_type": "rotary", "feat_extract_norm": "layer"},
    ),
    "conformer-none": ("Wav2Vec2Conformer", NEAR | {"position_embeddings_type": None}),
}
#: What their class holds without using it, and the model here has not.
UNUSED = "encoder.pos_conv_embed."


def built(name: str, head: str = "Model", **more):
    stem, about = FAMILIES[name]
    config = getattr(transformers, f"{stem}Config")(**(SIZES | about | more))
    theirs = shaken(getattr(transformers, f"{stem}{head}")(config))
    for buffer, value in theirs.named_buffers():
        if buffer.endswith("running_mean"):
            value.normal_(generator=torch.Generator().manual_seed(1))
        if buffer.endswith("running_var"):
            value.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    return theirs


def stored(theirs, folder: Path, *, normalize: bool = False) -> Path:
    theirs.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return folder


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    if any(".self_attn.linear_q." in key for key in a):  # a conformer
        a, b = ({k: v for k, v in x.items() if UNUSED not in k} for x in (a, b))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_there_and_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    theirs = built(name)
    folder = stored(theirs, tmp_path / "theirs")
    bundle = load(folder)
    lens = torch.tensor([1600, 1234, 777])
    wave = 0.1 * torch.randn(3, 1600, generator=torch.Generator().manual_seed(1))
    wave[torch.arange(1600) >= lens[:, None]] = 0.0
    together = bundle.backbone(wave, lens, layers=True)
    for row, n in enumerate(lens.tolist()):
        expected = theirs(wave[row : row + 1, :n], output_hidden_states=True)
        frames = expected.last_hidden_state.shape[1]
        for mine, other in zip(
            together.layers, (*expected.hidden_states[:-1], expected.last_hidden_state), strict=True
        ):
            torch.testing.assert_close(mine[row, :frames], other[0], atol=1e-4, rtol=0)
    assert main(["convert", str(folder), str(tmp_path / "back"), "--to", "hf"]) == 0
    told = capsys.readouterr().out
    assert "beside the network of transformers" in told
    assert "equal up to rounding" in told
    assert "speechssl" not in json.loads((tmp_path / "back" / "config.json").read_text())
    again, about = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    same(dict(again.state_dict()), dict(theirs.state_dict()))
    ours = tmp_path / "ours"
    assert main(["convert", str(folder), str(ours)]) == 0
    same(dict(load(ours).backbone.state_dict()), dict(bundle.backbone.state_dict()))


@pytest.mark.parametrize("name", ["hubert-layer", "wavlm-group", "data2vec", "conformer-rotary"])
@torch.no_grad()
def test_ctc_models_keep_their_family(name: str, tmp_path: Path):
    theirs = built(name, "ForCTC", vocab_size=5)
    folder = stored(theirs, tmp_path / "theirs", normalize=True)
    vocabulary = {"<pad>": 0, "|": 1, "A": 2, "B": 3, "'": 4}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    bundle = load(folder)
    assert isinstance(bundle.objective, CTC)
    save_bundle(tmp_path / "back", bundle.objective, card={}, family=bundle.kind, plain=True)
    again, about = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not about["missing_keys"] | about["unexpected_keys"]
    same(dict(again.state_dict()), dict(theirs.state_dict()))


@torch.no_grad()
def test_a_blank_that_stands_last_comes_first(tmp_path: Path):
    """As in the models of many tutorials, whose [PAD] is the last token."""
    theirs = built("wav2vec2-layer", "ForCTC", vocab_size=5, pad_token_id=4)
    folder = stored(theirs, tmp_path / "theirs")
    vocabulary = {"a": 0, "b": 1, " ": 2, "[UNK]": 3, "[PAD]": 4}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"word_delimiter_token": " "}')
    bundle = load(folder)
    assert bundle.classes == ("<pad>", "a", "b", "|", "<unk>")
    assert isinstance(bundle.objective, CTC)
    x = torch.randn(1, 999, generator=torch.Generator().manual_seed(1))
    mine = bundle.objective.lm_head(bundle.backbone(x, torch.tensor([999])).x)
    torch.testing.assert_close(mine, theirs(x).logits[..., [4, 0, 1, 2, 3]], atol=1e-4, rtol=0)
    (folder / "vocab.json").write_text('{"a": 0, "b": 0}')
    with pytest.raises(CheckpointError, match="each once"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "weighted"), [("wavlm-group", True), ("hubert-layer", False), ("data2vec", True)]
)
@torch.no_grad()
def test_classifiers_of_utterances(name: str, weighted: bool, tmp_path: Path):
    labels = {
        "id2label": {0: "ann", 1: "ben", 2: "cho"},
        "label2id": {"ann": 0, "ben": 1, "cho": 2},
    }
    theirs = built(
        name, "ForSequenceClassification", use_weighted_layer_sum=weighted,
        classifier_proj_size=6, **labels,
    )  # fmt: skip
    bundle = load(stored(theirs, tmp_path / "theirs"))
    assert isinstance(bundle.objective, Speaker)
    assert bundle.classes == ("ann", "ben", "cho")
    x = torch.randn(1, 1500, generator=torch.Generator().manual_seed(1))
    lens = torch.tensor([1500])
    frames = torch.as_tensor(bundle.backbone.geometry.frames(lens))
    batch = Batch(["u"], x, lens, frames, 1)
    logits = bundle.objective.logits(bundle.objective.embed(batch))
    torch.testing.assert_close(logits, theirs(x).logits, atol=1e-4, rtol=0)
    save_bundle(tmp_path / "back", bundle.objective, card={}, family=bundle.kind, plain=True)
    again, about = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not about["missing_keys"] | about["unexpected_keys"]
    same(dict(again.state_dict()), dict(theirs.state_dict()))
    assert again.config.id2label == {0: "ann", 1: "ben", 2: "cho"}


def test_heads_without_a_counterpart_are_told(tmp_path: Path):
    theirs = built("wavlm-group", "ForXVector", tdnn_dim=(8, 8, 8, 8, 8), xvector_output_dim=8)
    bundle = load(stored(theirs, tmp_path / "x"))
    assert bundle.objective is None
    assert any("head left out" in line and "tdnn" in line for line in bundle.told)
    pre = built("hubert-layer", "ForSequenceClassification", use_weighted_layer_sum=True)
    assert load(stored(pre, tmp_path / "y")).objective is None
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "x" / "model.safetensors")
    save_file(weights | {"stranger": torch.zeros(1)}, tmp_path / "x" / "model.safetensors")
    with pytest.raises(CheckpointError, match="stranger"):
        load(tmp_path / "x")


@pytest.mark.parametrize("about", [{"add_adapter": True}, {"adapter_attn_dim": 16}])
def test_adapters_are_refused_by_name(about: dict, tmp_path: Path):
    transformers.Wav2Vec2Config(**SIZES, **about).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=next(iter(about))):
        load(tmp_path)


@pytest.mark.parametrize("mode", [("group", "post", False), ("layer", "pre", True)])
@torch.no_grad()
def test_wavlm_of_torchaudio(mode, tmp_path: Path):
    cfg = wavlm(*mode)
    theirs = shaken(torchaudio.models.wavlm_model(**torchaudio_sizes(cfg)))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    found = load(tmp_path / "theirs.pt")  # without a word on heads: the gates tell
    assert (found.backbone.cfg.heads, found.backbone.cfg.rel_buckets) == (4, 16)
    x = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(1))
    heard = (
        torch.nn.functional.layer_norm(x, x.shape, eps=1e-7) if found.backbone.cfg.normalize else x
    )
    found.backbone.encoder.layers[0].attention.max_distance = 20  # which no tensor tells
    mine = found.backbone(x, torch.tensor([4000])).x
    torch.testing.assert_close(mine, theirs(heard)[0], atol=1e-4, rtol=0)
    write_foreign(found.backbone, "torchaudio", tmp_path / "back.pt")
    same(torch.load(tmp_path / "back.pt", weights_only=True), dict(theirs.state_dict()))


def wavlm(conv_norm: str, norm: str, bias: bool) -> BackboneConfig:
    return preset(
        "tiny", normalize=conv_norm == "layer", conv_dims=(16,) * 7, conv_norm=conv_norm, norm=norm,
        conv_bias=bias, dim=32, layers=3, ffn=48, pos_kernel=8, pos_groups=4,
        attention_positions="gated_relative", rel_buckets=16, rel_max_distance=20,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["wavlm", "data2vec-audio"])
def test_fairseq_files_of_the_other_families(kind: str, tmp_path: Path):
    cfg = wavlm("layer", "pre", False)
    if kind == "data2vec-audio":
        cfg = preset(
            "tiny", conv_dims=(16,) * 7, dim=32, layers=2, ffn=48, norm="post", pos_groups=4,
            pos_conv="stack", pos_depth=3, pos_kernel=5,
        )  # fmt: skip
    assert family(cfg) == kind
    ours = shaken(Backbone(cfg))
    write_foreign(ours, "fairseq", tmp_path / "x.pt")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    if kind == "wavlm":  # the release keeps its options in one flat table
        content["cfg"] = content["cfg"]["model"] | content["cfg"]["task"]
        assert "encoder.layers.0.self_attn.relative_attention_bias.weight" in content["model"]
        assert "encoder.layers.1.self_attn.grep_a" in content["model"]
    else:
        content["model"]["_ema"] = {"layers.0.fc1.weight": torch.zeros(2)}
        content["model"]["final_proj.weight"] = torch.zeros(32, 32)
        assert "encoder.pos_conv.2.0.weight" in content["model"]
    torch.save(content, tmp_path / "x.pt")
    found = read_foreign(tmp_path / "x.pt")
    model = as_model(found, "x.pt")
    same(dict(model.state_dict()), dict(ours.state_dict()))
    # All that the network depends on; rates of dropout are not read from such files.
    for key in ("norm", "heads", "pos_conv", "pos_depth", "pos_kernel", "attention_positions"):
        assert getattr(found.cfg, key) == getattr(cfg, key)
    assert (found.cfg.rel_buckets, found.cfg.rel_max_distance) == (
        cfg.rel_buckets, cfg.rel_max_distance,
    )  # fmt: skip
    if kind == "wavlm":
        assert all(one.passes for one in compare_with_torchaudio(model))


def test_buckets_are_those_of_their_attention():
    attention = built("wavlm-group").encoder.layers[0].attention
    attention.num_buckets, attention.max_distance = 320, 800
    distance = torch.arange(-2000, 2001)
    torch.testing.assert_close(
        relative_bucket(distance, 320, 800), attention._relative_positions_bucket(distance)
    )


def test_settings_that_contradict_each_other():
    with pytest.raises(ConfigError, match="pos_depth"):
        preset("tiny", pos_depth=3)
    with pytest.raises(ConfigError, match="rel_buckets"):
        preset("tiny", attention_positions="gated_relative", rel_buckets=10)
    with pytest.raises(ConfigError, match="has no use for attention_positions"):
        preset("wav2vec", attention_positions="gated_relative")


def test_a_network_that_nobody_else_has_stays_ours(tmp_path: Path, capsys):
    cfg = preset(
        "tiny", layers=1, attention_positions="gated_relative", pos_conv="stack", pos_depth=2
    )
    assert family(cfg) is None
    save_bundle(tmp_path / "m", Backbone(cfg), card={})
    assert load(tmp_path / "m").backbone.cfg == cfg
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "x"), "--to", "hf"]) != 0
    assert "no class in transformers" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="cannot be written as 'wavlm'"):
        save_bundle(tmp_path / "y", Backbone(preset("tiny", layers=1)), card={}, family="wavlm")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES))
def test_published_sizes(name: str, tmp_path: Path, capsys):
    stem, about = FAMILIES[name]
    small = ("num_buckets", "max_bucket_distance", "conv_depthwise_kernel_size", *STACK)
    about = {k: v for k, v in about.items() if k not in small}
    torch.manual_seed(1)
    theirs = getattr(transformers, f"{stem}Model")(getattr(transformers, f"{stem}Config")(**about))
    folder = stored(theirs, tmp_path / "theirs")
    assert main(["convert", str(folder), str(tmp_path / "back"), "--to", "hf"]) == 0
    assert "equal up to rounding" in capsys.readouterr().out
    again = type(theirs).from_pretrained(tmp_path / "back")
    same(dict(again.state_dict()), dict(theirs.state_dict()))


@pytest.mark.slow
@pytest.mark.parametrize("build", ["wavlm_base", "wavlm_large"])
def test_published_wavlm_of_torchaudio(build: str, tmp_path: Path, capsys):
    torch.manual_seed(1)
    theirs = getattr(torchaudio.models, build)()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    assert main(["convert", str(tmp_path / "theirs.pt"), str(tmp_path / "ours")]) == 0
    assert "equal up to rounding" in capsys.readouterr().out
    write_foreign(load(tmp_path / "ours").backbone, "torchaudio", tmp_path / "back.pt")
    same(torch.load(tmp_path / "back.pt", weights_only=True), dict(theirs.state_dict()))
