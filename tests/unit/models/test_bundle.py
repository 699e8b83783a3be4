from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import speechssl
from speechssl.downstream.ctc import CTC
from speechssl.downstream.speaker import Speaker
from speechssl.errors import CheckpointError, SpeechSSLError
from speechssl.models import folder as folder_module
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import load, load_bundle, name_of, save_bundle
from speechssl.models.presets import BackboneConfig, preset
from speechssl.objectives.masking import SpanMask
from speechssl.objectives.wav2vec import Wav2Vec
from speechssl.objectives.wav2vec2 import Wav2Vec2
from tests.trap import Trap

CONFIG = BackboneConfig(
    preset="test", conv_dims=(8, 8), conv_kernels=(10, 3), conv_strides=(5, 2),
    dim=16, layers=2, heads=2, ffn=24, pos_kernel=4, pos_groups=2,
)  # fmt: skip
CHARACTERS = ("<pad>", "|", "A", "B")


def make(name: str):
    torch.manual_seed(3)
    backbone = Backbone(CONFIG)
    if name == "backbone":
        return backbone
    if name == "ctc":
        return CTC(backbone, CTC.Config(freeze_steps=7), CHARACTERS)
    if name == "speaker":
        return Speaker(backbone, Speaker.Config(proj_dim=4), ("ann", "bob", "cy"))
    if name == "wav2vec":
        small = {"conv_dims": (8,) * 5, "dim": 8, "layers": 2, "context_kernels": (2, 3)}
        return Wav2Vec(Backbone(preset("wav2vec-tiny", **small)), Wav2Vec.Config())
    mask = SpanMask(prob=0.3)
    return Wav2Vec2(backbone, Wav2Vec2.Config(mask=mask, codes=4, code_dim=6, final_dim=5))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "model", make("ctc"), card={"license": "cc0-1.0"})
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["backbone", "ctc", "speaker", "wav2vec", "wav2vec2"])
def test_round_trip_is_bit_exact(tmp_path: Path, name: str):
    model = make(name)
    save_bundle(tmp_path / "model", model, card={})
    bundle = load(tmp_path / "model")
    again = bundle.backbone if bundle.objective is None else bundle.objective
    assert type(again) is type(model)
    assert again.cfg == model.cfg
    assert not again.training
    expected, got = model.state_dict(), again.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert bundle.classes == getattr(model, "classes", ())


def test_names_are_hugging_faces(saved: Path, tmp_path: Path):
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert "wav2vec2.encoder.layers.0.attention.q_proj.weight" in keys
    assert "lm_head.weight" in keys
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["Wav2Vec2ForCTC"]
    assert config["vocab_size"] == 4
    assert json.loads((saved / "vocab.json").read_text()) == {"<pad>": 0, "|": 1, "A": 2, "B": 3}
    assert json.loads((saved / "preprocessor_config.json").read_text())["return_attention_mask"]


def test_models_without_their_class_say_so(tmp_path: Path):
    save_bundle(tmp_path / "model", make("wav2vec"), card={})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "speechssl-wav2vec"
    assert "no class for this network" in (tmp_path / "model" / "README.md").read_text()


def test_weighted_layers_are_not_called_wav2vec2forctc(tmp_path: Path):
    model = CTC(Backbone(CONFIG), CTC.Config(layers="weighted"), CHARACTERS)
    save_bundle(tmp_path / "model", model, card={})
    bundle = load_bundle(tmp_path / "model")
    assert bundle.config["architectures"] == ["Wav2Vec2Model"]
    assert bundle.objective is not None


def test_weights_of_an_engine_replace_the_models_own(tmp_path: Path):
    model = make("backbone")
    weights = {k: (v + 1).bfloat16() for k, v in model.state_dict().items()}
    save_bundle(tmp_path / "model", model, state_dict=weights, card={})
    got = load_bundle(tmp_path / "model").backbone.state_dict()
    assert all(torch.equal(got[k], weights[k].float()) for k in weights)


def test_card_holds_what_the_trainer_says(tmp_path: Path):
    card = {
        "title": "Tiny",
        "command": "speechssl train --config a.yaml",
        "data": "10 min of digits",
        "metrics": {"dev WER": 0.25},
        "license": "cc-by-4.0",
        "steps": 300,
    }
    save_bundle(tmp_path / "model", make("ctc"), card=card)
    text = (tmp_path / "model" / "README.md").read_text()
    assert text.startswith('---\nlicense: "cc-by-4.0"\n')
    for part in (
        "# Tiny",
        card["command"],
        "10 min of digits",
        "| dev WER | 0.25 |",
        "| steps | 300",
    ):
        assert part in text
    assert "automatic-speech-recognition" in text


def test_saving_replaces_the_old_folder_and_leaves_nothing_behind(saved: Path):
    save_bundle(saved, make("backbone"), card={})
    assert load_bundle(saved).objective is None
    assert not (saved / "vocab.json").exists()
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_failed_save_keeps_the_old_folder(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "_sync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_bundle(saved, make("backbone"), card={})
    assert (saved / "model.safetensors").read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_saving_refuses_weights_that_are_not_the_models(tmp_path: Path):
    model = make("backbone")
    weights = model.state_dict()
    weights["masked_spec_embed"] = torch.full_like(weights["masked_spec_embed"], torch.nan)
    with pytest.raises(CheckpointError, match="NaN or Inf in masked_spec_embed"):
        save_bundle(tmp_path / "model", model, state_dict=weights, card={})
    del weights["masked_spec_embed"]
    with pytest.raises(CheckpointError, match="1 tensors missing: masked_spec_embed"):
        save_bundle(tmp_path / "model", model, state_dict=weights, card={})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_truncated_weights(saved: Path, keep: float):
    path = saved / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, int(keep * size) if isinstance(keep, float) else keep)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or truncated"):
        load_bundle(saved)


def edit(folder: Path, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_newer_format_asks_for_an_upgrade(saved: Path):
    edit(saved, lambda c: c["speechssl"].update(format=99, version="7.1"))
    with pytest.raises(CheckpointError, match=r"written by speechssl 7\.1 .*upgrade"):
        load_bundle(saved)


def test_damaged_settings_are_named(saved: Path):
    edit(saved, lambda c: c["speechssl"]["backbone"].update(layrs=3))
    with pytest.raises(CheckpointError, match=r"layrs.*speechssl\.backbone\.layers"):
        load_bundle(saved)
    edit(saved, lambda c: c["speechssl"]["backbone"].pop("layrs"))
    edit(saved, lambda c: c["speechssl"]["backbone"].update(dim="wide"))
    with pytest.raises(CheckpointError, match="wide"):
        load_bundle(saved)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_no_edit_of_the_settings_escapes_our_errors(saved: Path):
    original = json.loads((saved / "config.json").read_text())["speechssl"]

    def leaves(table: dict, path: tuple[str, ...] = ()):
        for key, value in table.items():
            yield (*path, key)
            if isinstance(value, dict):
                yield from leaves(value, (*path, key))

    wrong = (None, "x", -1, 0, [[1]])
    for i, path in enumerate(leaves(original)):
        changed = json.loads(json.dumps(original))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = wrong[i % len(wrong)]
        edit(saved, lambda c, changed=changed: c.update(speechssl=changed))
        with contextlib.suppress(SpeechSSLError):  # or it loads
            load_bundle(saved)


def test_a_model_cannot_name_modules_to_import(saved: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    edit(saved, lambda c: c["speechssl"]["objective"].update(name="this:Evil"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(saved))
    for model in ("some/model", saved):
        with pytest.raises(CheckpointError, match=r"code of another package.*plugins=True"):
            speechssl.load(model)
    assert "this" not in sys.modules
    edit(saved, lambda c: c["speechssl"]["objective"].update(name=f"{CTC.__module__}:CTC"))
    assert isinstance(speechssl.load("some/model", plugins=True).objective, CTC)


def test_weights_of_another_size(saved: Path):
    edit(saved, lambda c: c["speechssl"]["backbone"].update(ffn=48))
    with pytest.raises(CheckpointError, match=r"shape \(24, 16\), expected \(48, 16\)"):
        load_bundle(saved)


def test_not_finite_weights(saved: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    weights["lm_head.bias"][0] = torch.inf
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or Inf in lm_head\.bias"):
        load_bundle(saved)


def test_missing_files(saved: Path, tmp_path: Path):
    (saved / "config.json").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"no config\.json \(found: README\.md"):
        load_bundle(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_bundle(saved)
    shutil.move(tmp_path / "elsewhere", saved / "config.json")
    (saved / "model.safetensors").rename(saved / "tf_model.h5")
    with pytest.raises(CheckpointError, match=r"found tf_model\.h5, which is not read"):
        load_bundle(saved)


def test_old_weights_are_read(saved: Path):
    expected = load_bundle(saved).objective
    assert expected is not None
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    again = load_bundle(saved).objective
    assert again is not None
    torch.testing.assert_close(again.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(saved: Path, tmp_path: Path, zipped: bool):
    (saved / "model.safetensors").unlink()
    content = {"lm_head.weight": torch.zeros(2), "extra": Trap(tmp_path / "touched")}
    old = saved / "pytorch_model.bin"
    torch.save(content, old, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: .*asks for \w+\.system"):
        load_bundle(saved)
    assert not (tmp_path / "touched").exists()
    old.write_bytes(old.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be loaded safely"):
        load_bundle(saved)
    torch.save([torch.zeros(2)], old)
    with pytest.raises(CheckpointError, match="no table of tensors"):
        load_bundle(saved)


def test_shards(saved: Path):
    expected = load_bundle(saved).objective
    assert expected is not None
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, saved / file)
        where |= dict.fromkeys(part, file)
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    again = load_bundle(saved).objective
    assert again is not None
    torch.testing.assert_close(again.state_dict(), expected.state_dict(), rtol=0, atol=0)
    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-\S+, which is missing"):
        load_bundle(saved)
    index.write_text('{"weight_map": {"a": "../elsewhere"}}')
    with pytest.raises(CheckpointError, match="no weight_map"):
        load_bundle(saved)


def test_other_families_are_named(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "seamless_m4t"}')
    with pytest.raises(CheckpointError, match="type 'seamless_m4t'"):
        speechssl.load(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "./organisation/name", "a/b/c", "no such folder"])
def test_a_missing_folder_is_no_hub_id(name: str):
    with pytest.raises(CheckpointError, match="does not exist"):
        speechssl.load(name)


def test_no_network(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        CheckpointError, match=r"cannot fetch model 'some/model'.*check id, revision"
    ):
        speechssl.load("some/model")


def test_a_hub_id_loads_its_snapshot(saved: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(saved))
    assert speechssl.load("some/model").classes == CHARACTERS


def test_objectives_of_others_are_named_by_module():
    class Mine(CTC):
        pass

    assert name_of(make("ctc")) == "ctc"
    assert name_of(Mine(Backbone(CONFIG), CTC.Config(), CHARACTERS)).startswith(f"{__name__}:")


def test_group_norm_models_want_no_attention_mask(tmp_path: Path):
    model = Backbone(replace(CONFIG, conv_norm="group", norm="post"))
    save_bundle(tmp_path / "model", model, card={})
    stored = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert not stored["return_attention_mask"]
