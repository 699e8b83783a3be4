"""Checkpoint files of torchaudio and fairseq, made here in their layouts, both ways."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import pytest
import torch
import torchaudio
from torchaudio.models.wav2vec2.utils import import_fairseq

from speechssl.cli.main import main
from speechssl.downstream.ctc import CTC
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop.convert import (
    compare_with_torchaudio,
    torchaudio_sizes,
    write_foreign,
)
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import load, save_bundle
from speechssl.models.formats.foreign import read_foreign
from speechssl.models.formats.keymap import from_ours, layout_of, to_ours
from speechssl.models.formats.stored import as_model
from speechssl.models.presets import BackboneConfig, preset
from speechssl.objectives.wav2vec2 import Wav2Vec2
from tests.interop.shaken import shaken
from tests.trap import Trap

pytestmark = pytest.mark.interop
CLASSES = ("<pad>", "<s>", "</s>", "<unk>", "|", "E", "T")


def sizes(conv_norm: str, norm: str, bias: bool) -> BackboneConfig:
    return BackboneConfig(
        preset="test",
        normalize=conv_norm == "layer",
        conv_dims=(16,) * 7,
        conv_bias=bias,
        conv_norm=conv_norm,  # type: ignore[arg-type]
        dim=32,
        layers=3,
        heads=2,
        ffn=48,
        norm=norm,  # type: ignore[arg-type]
        pos_kernel=8,
        pos_groups=4,
        dropout=0.0,
    )


MODES = [("group", "post", False), ("layer", "pre", True), ("layer", "pre", False)]
MODES += [("group", "pre", False), ("layer", "post", True)]


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_torchaudio_to_folder_and_back(mode, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, norm, _ = mode
    arguments = torchaudio_sizes(sizes(*mode))
    theirs = shaken(torchaudio.models.wav2vec2_model(**arguments))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    folder = tmp_path / "ours"
    words = ["--heads", "2", "--norm", norm]
    assert main(["convert", str(tmp_path / "theirs.pt"), str(folder), *words]) == 0
    told = capsys.readouterr().out
    assert "equal up to rounding" in told
    assert "padded" in told
    ours = load(folder).backbone
    assert (ours.cfg.conv_norm, ours.cfg.norm, ours.cfg.conv_bias) == mode
    x = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(1))
    heard = torch.nn.functional.layer_norm(x, x.shape, eps=1e-7) if ours.cfg.normalize else x
    torch.testing.assert_close(ours(x, torch.tensor([4000])).x, theirs(heard)[0], atol=1e-4, rtol=0)
    back = tmp_path / "back.pt"
    assert main(["convert", str(folder), str(back), "--to", "torchaudio"]) == 0
    same(torch.load(back, weights_only=True), dict(theirs.state_dict()))


def test_what_a_torchaudio_file_does_not_tell_is_said(tmp_path: Path):
    theirs = torchaudio.models.wav2vec2_model(**torchaudio_sizes(sizes("group", "post", False)))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    found = read_foreign(tmp_path / "theirs.pt")
    assert any("attention heads" in line for line in found.told)
    assert any("post-norm" in line for line in found.told)
    assert any("mask vector" in line for line in found.told)
    told = read_foreign(tmp_path / "theirs.pt", heads=2, norm="pre")
    assert (told.cfg.heads, told.cfg.norm, len(told.told)) == (2, "pre", 1)
    with pytest.raises(ConfigError, match="multiple of heads"):
        read_foreign(tmp_path / "theirs.pt", heads=3)
    odd = {k: v[..., :5] if k.endswith("layers.0.conv.weight") else v
           for k, v in theirs.state_dict().items()}  # fmt: skip
    torch.save(odd, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="does not tell their strides"):
        read_foreign(tmp_path / "odd.pt")


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_fairseq_names_are_those_that_torchaudio_reads(mode):
    """Torchaudio's own importer of fairseq models is the independent table of names."""
    ours = shaken(Backbone(sizes(*mode)))
    state = from_ours(ours.state_dict(), "fairseq", conv_norm=mode[0])
    state.pop("mask_emb")  # which the importer does not know
    theirs = torchaudio.models.wav2vec2_model(**torchaudio_sizes(ours.cfg)).eval()
    theirs.load_state_dict(import_fairseq._convert_state_dict(state))
    x = 0.1 * torch.randn(1, 3000, generator=torch.Generator().manual_seed(1))
    heard = torch.nn.functional.layer_norm(x, x.shape, eps=1e-7) if ours.cfg.normalize else x
    torch.testing.assert_close(ours(x, torch.tensor([3000])).x, theirs(heard)[0], atol=1e-4, rtol=0)


def settings_of(cfg: BackboneConfig) -> dict:
    """Options of a fairseq model, in the spelling of its published files."""
    return {
        "extractor_mode": "layer_norm" if cfg.conv_norm == "layer" else "default",
        "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)]*2",
        "conv_bias": cfg.conv_bias, "encoder_layers": cfg.layers, "encoder_embed_dim": cfg.dim,
        "encoder_ffn_embed_dim": cfg.ffn, "encoder_attention_heads": cfg.heads,
        "layer_norm_first": cfg.norm == "pre", "conv_pos": cfg.pos_kernel,
        "conv_pos_groups": cfg.pos_groups, "latent_groups": 2, "num_negatives": 7,
        "logit_temp": 0.2,
    }  # fmt: skip


@pytest.fixture
def fairseq_classes(monkeypatch: pytest.MonkeyPatch):
    """Classes under the names that fairseq's pickles give, gone again before they are read."""
    made = {}
    for name in ("omegaconf.dictconfig.DictConfig", "omegaconf.nodes.AnyNode",
                 "omegaconf.base.ContainerMetadata", "fairseq.data.dictionary.Dictionary",
                 "fairseq.dataclass.constants.ExtractorMode"):  # fmt: skip
        module, _, cls = name.rpartition(".")
        for end in range(1, module.count(".") + 1):
            parent = ".".join(module.split(".")[:end])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        made[cls] = type(cls, (), {"__module__": module})
        holder = sys.modules.get(module) or types.ModuleType(module)
        setattr(holder, cls, made[cls])
        monkeypatch.setitem(sys.modules, module, holder)
    yield made
    monkeypatch.undo()


def node(classes: dict, value):
    """`value` as OmegaConf stores it: a tree of objects."""
    if isinstance(value, dict):
        found = classes["DictConfig"]()
        content = {k: node(classes, v) for k, v in value.items()}
        found.__dict__ = {"_content": content, "_metadata": classes["ContainerMetadata"]()}
        return found
    found = classes["AnyNode"]()
    found.__dict__ = {"_val": value, "_parent": None}
    return found


@pytest.mark.parametrize("form", ["cfg", "omegaconf", "args"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("mode", MODES[:2])
def test_fairseq_pretraining_model(
    mode, form: str, zipped: bool, tmp_path: Path, fairseq_classes, monkeypatch
):
    settings = Wav2Vec2.Config(groups=2, codes=6, code_dim=12, final_dim=10)
    ours = shaken(Wav2Vec2(Backbone(sizes(*mode)), settings))
    renamed = {k.removeprefix("backbone."): v for k, v in ours.state_dict().items()}
    content = {
        "model": from_ours(renamed, "fairseq", conv_norm=mode[0]),
        "optimizer_history": [{"num_updates": 3}],
        "task_state": {"dictionary": fairseq_classes["Dictionary"]()},
    }
    assert "quantizer.vars" in content["model"]
    options = settings_of(ours.backbone.cfg)
    if form == "args":
        content["args"] = argparse.Namespace(**options, normalize=ours.backbone.cfg.normalize)
    else:
        task = {"normalize": ours.backbone.cfg.normalize}
        content["cfg"] = {"model": options, "task": task}
    if form == "omegaconf":
        content["cfg"] = node(fairseq_classes, content["cfg"])
    torch.save(content, tmp_path / "w2v.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    assert "omegaconf.dictconfig" not in sys.modules
    found = read_foreign(tmp_path / "w2v.pt")
    assert found.told == ()
    cfg = ours.backbone.cfg
    assert (found.cfg.norm, found.cfg.normalize, found.cfg.heads) == (
        cfg.norm, cfg.normalize, cfg.heads,
    )  # fmt: skip
    model = as_model(found, "w2v.pt")
    assert isinstance(model, Wav2Vec2)
    assert (model.cfg.num_negatives, model.cfg.logit_temperature) == (7, 0.2)
    same(dict(model.state_dict()), dict(ours.state_dict()))
    assert all(one.passes for one in compare_with_torchaudio(model))
    # And out again: what we write as fairseq's is read as the same network.
    left_out = write_foreign(model, "fairseq", tmp_path / "again.pt")
    assert "quantizer.codevectors" in left_out
    again = read_foreign(tmp_path / "again.pt")
    same(again.backbone, dict(model.backbone.state_dict()))
    assert (again.cfg.norm, again.cfg.conv_strides) == (found.cfg.norm, found.cfg.conv_strides)


def fairseq_ctc(folder: Path) -> CTC:
    ours = shaken(CTC(Backbone(sizes("layer", "pre", True)), CTC.Config(), CLASSES))
    renamed = {k.removeprefix("backbone."): v for k, v in ours.state_dict().items()}
    state = {
        ("w2v_encoder." if k.startswith("proj.") else "w2v_encoder.w2v_model.") + k: v
        for k, v in from_ours(renamed, "fairseq", conv_norm="layer").items()
    }
    inner = {"model": settings_of(ours.backbone.cfg), "task": {"normalize": True}}
    cfg = {"model": {"_name": "wav2vec_ctc", "w2v_args": inner, "normalize": True}}
    torch.save({"model": state, "cfg": cfg, "args": None}, folder / "ctc.pt")
    return ours


def test_fairseq_ctc_model_with_its_dictionary(tmp_path: Path, capsys):
    ours = fairseq_ctc(tmp_path)
    found = read_foreign(tmp_path / "ctc.pt")
    assert isinstance(as_model(found, "ctc.pt"), Backbone)
    assert "dict.ltr.txt" in found.told[0]
    (tmp_path / "dict.ltr.txt").write_text("| 94802\nE 51860\nT 38431\n")
    assert main(["convert", str(tmp_path / "ctc.pt"), str(tmp_path / "folder")]) == 0
    assert "logits" in capsys.readouterr().out
    bundle = load(tmp_path / "folder")
    assert bundle.classes == CLASSES
    assert isinstance(bundle.objective, CTC)
    same(dict(bundle.objective.state_dict()), dict(ours.state_dict()))
    (tmp_path / "dict.ltr.txt").write_text("| 94802\n")
    with pytest.raises(CheckpointError, match="5 symbols"):
        read_foreign(tmp_path / "ctc.pt")


def test_hubert_of_fairseq_leaves_its_labels_behind(tmp_path: Path):
    ours = shaken(Backbone(sizes("group", "post", False)))
    state = from_ours(ours.state_dict(), "fairseq", conv_norm="group")
    labels = {"label_embs_concat": torch.zeros(5, 8), "final_proj.weight": torch.zeros(8, 32)}
    labels["final_proj.bias"] = torch.zeros(8)
    content = {"model": state | labels, "cfg": {"model": settings_of(ours.cfg), "task": {}}}
    torch.save(content, tmp_path / "hubert.pt")
    found = read_foreign(tmp_path / "hubert.pt")
    assert sorted(found.dropped) == sorted(labels)
    same(found.backbone, dict(ours.state_dict()))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_by_name(tmp_path: Path, zipped: bool, capsys):
    content = {"model": {}, "cfg": Trap(tmp_path / "touched")}
    torch.save(content, tmp_path / "w2v.pt", _use_new_zipfile_serialization=zipped)
    assert main(["convert", str(tmp_path / "w2v.pt"), str(tmp_path / "out")]) != 0
    told = capsys.readouterr().err
    assert "w2v.pt" in told
    assert ".system" in told
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "out").exists()


def test_contradictions_and_strangers(tmp_path: Path):
    ours = Backbone(sizes("group", "post", False))
    state = from_ours(ours.state_dict(), "fairseq", conv_norm="group")
    settings = settings_of(ours.cfg)

    def read(model: dict, **changed) -> None:
        cfg = {"model": settings | changed, "task": {}}
        torch.save({"model": model, "cfg": cfg}, tmp_path / "x.pt")
        read_foreign(tmp_path / "x.pt")

    for key, value in (("encoder_layers", 4), ("extractor_mode", "layer_norm"), ("conv_pos", 9)):
        with pytest.raises(CheckpointError, match=key):
            read(state, **{key: value})
    with pytest.raises(CheckpointError, match="conv_feature_layers"):
        read(state, conv_feature_layers="[(16,10,5)]")
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.0\.adapter"):
        read(state | {"encoder.layers.0.adapter.weight": torch.zeros(1)})
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="without its settings"):
        read_foreign(tmp_path / "x.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="neither a fairseq nor a torchaudio"):
        read_foreign(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be loaded") as caught:
        read_foreign(tmp_path / "x.pt")
    assert "weights_only" not in str(caught.value)  # torch's advice to load without the safety


def test_a_network_without_counterpart_says_so(tmp_path: Path, capsys):
    save_bundle(tmp_path / "m", Backbone(preset("filterbank-tiny", layers=1)), card={})
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "x.pt"), "--to", "fairseq"]) != 0
    assert "filterbank" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


def test_torchaudio_pretraining_and_ctc_heads_are_told(tmp_path: Path, capsys):
    arguments = torchaudio_sizes(sizes("group", "post", False), classes=5)
    ctc = shaken(torchaudio.models.wav2vec2_model(**arguments))
    torch.save(ctc.state_dict(), tmp_path / "ctc.pt")
    words = ["--heads", "2"]
    assert main(["convert", str(tmp_path / "ctc.pt"), str(tmp_path / "ctc"), *words]) == 0
    assert "head left out: lm_head.bias, lm_head.weight" in capsys.readouterr().out
    bare = {k: v for k, v in ctc.state_dict().items() if not k.startswith("aux.")}
    wrapped = {f"wav2vec2.{k}": v for k, v in bare.items()}
    wrapped["mask_generator.mask_embedding"] = torch.full((32,), 0.5)
    wrapped["logit_generator.label_embeddings"] = torch.zeros(4, 8)
    torch.save(wrapped, tmp_path / "hubert.pt")
    found = read_foreign(tmp_path / "hubert.pt", heads=2, norm="post")
    assert found.dropped == ("logit_generator.label_embeddings",)
    assert found.told == ()
    assert bool((found.backbone["masked_spec_embed"] == 0.5).all())
    same(from_ours(found.backbone, "torchaudio"), bare)


def test_options_for_torchaudio_beside_a_fairseq_file_are_an_error(tmp_path: Path, capsys):
    fairseq_ctc(tmp_path)
    words = ["convert", str(tmp_path / "ctc.pt"), str(tmp_path / "x"), "--heads", "2"]
    assert main(words) == 2
    assert "leave them out" in capsys.readouterr().err


def test_differences_are_seen():
    """The proof can fail: a network with two weights changed places does not pass."""
    model = shaken(Backbone(sizes("layer", "pre", True)))
    assert all(one.passes for one in compare_with_torchaudio(model))
    block = model.encoder.layers[1].attention
    honest = block.forward
    block.forward = lambda x, attend, bias: honest(x, attend, bias) * 1.01
    failed = [one for one in compare_with_torchaudio(model) if not one.passes]
    assert {one.padded for one in failed} == {False, True}
    assert not any(one.state == "layer 1" for one in failed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build", ["wav2vec2_base", "hubert_base", "hubert_large", "wav2vec2_large_lv60k"]
)
def test_published_sizes(build: str, tmp_path: Path, capsys):
    torch.manual_seed(1)
    sizes = {} if build.endswith("base") else {"encoder_layer_drop": 0.0}
    theirs = getattr(torchaudio.models, build)(**sizes)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    assert main(["convert", str(tmp_path / "theirs.pt"), str(tmp_path / "ours")]) == 0
    assert "equal up to rounding" in capsys.readouterr().out
    weights, _, _ = to_ours(theirs.state_dict(), layout_of(theirs.state_dict()), build)
    back = from_ours(weights, "torchaudio")
    same(back, dict(theirs.state_dict()))
