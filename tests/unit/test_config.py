"""Resolving a configuration: presets, files, command line, starting from a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from speechssl.config import cross_checks, from_file, input_hashes, resolve
from speechssl.errors import ConfigError
from speechssl.models.presets import preset

NAMED = ["--objective.name", "wav2vec2"]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def model_folder(folder: Path, **changes: object) -> str:
    stored = asdict(preset("tiny", **changes))
    (folder / "config.json").write_text(json.dumps({"speechssl": {"backbone": stored}}))
    return str(folder)


def test_later_files_win_and_the_command_line_wins_over_files(tmp_path: Path):
    a = write(tmp_path, "a.yaml", "optim: {lr: 1.0e-3, steps: 7}\nobjective: {name: wav2vec2}\n")
    b = write(tmp_path, "b.yaml", "optim:\n  lr: 2e-3\n  clip_norm: 1\n")
    config = resolve(["--config", a, "--config", b, "--optim.clip_norm", "3"])
    assert (config.optim.lr, config.optim.steps, config.optim.clip_norm) == (2e-3, 7, 3.0)
    assert config.sources["optim.lr"] == f"{b}:2"
    assert config.sources["optim.clip_norm"] == "command line"
    assert "optim.eps" not in config.sources


def test_explicit_backbone_settings_override_the_preset():
    config = resolve([*NAMED, "--backbone.preset", "base", "--backbone.layers", "3"])
    assert config.backbone == preset("base", layers=3)
    assert config.sources["backbone.dim"] == "preset base"
    assert config.sources["backbone.layers"] == "command line"


def test_resolved_yaml_reads_back_as_the_same_configuration(tmp_path: Path):
    config = resolve([*NAMED, "--data.train", "a.jsonl", "--objective.mask.prob", "0.5"])
    config.save(tmp_path / "run" / "config.yaml")
    again = from_file(tmp_path / "run" / "config.yaml")
    assert again.to_dict() == config.to_dict()
    assert again.objective.cfg.mask.prob == 0.5
    assert again.data.train == ("a.jsonl",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "1"], r"unknown key 'optim.lrr'; did you mean 'optim.lr'\?"),
        (["--engine.lr", "1"], "did you mean 'optim.lr'"),
        ([*NAMED, "--objective.num_negativs", "1"], "'objective.num_negatives'.*'wav2vec2'"),
        ([*NAMED, "--optim.lr", "fast"], "command line: optim.lr: got 'fast'"),
        ([*NAMED, "--backbone.preset", "bas"], "did you mean 'base'"),
        ([*NAMED, "--backbone.heads", "3"], "multiple of heads"),
        (["--objective.name", "ctcc"], "command line: objective.name.*did you mean 'ctc'"),
        ([], "objective.name is not set; expected one of .*ctc"),
    ],
)
def test_mistakes_are_named_with_the_nearest_name(words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        resolve(words)


def test_unknown_key_names_file_and_line(tmp_path: Path):
    path = write(tmp_path, "a.yaml", "objective: {name: wav2vec2}\noptim:\n  warmup: 3\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:3: unknown key 'optim.warmup'.*warmup_steps"):
        resolve(["--config", path])


def test_init_takes_the_backbone_of_the_model(tmp_path: Path):
    folder = model_folder(tmp_path, dim=64, dropout=0.1)
    config = resolve([*NAMED, "--init.from", folder, "--backbone.dropout", "0.0"])
    assert (config.backbone.dim, config.backbone.dropout) == (64, 0.0)
    assert config.sources["backbone.dim"] == f"model {folder}"
    assert config.to_dict()["init"] == {"from": folder}


@pytest.mark.parametrize("words", [["--backbone.dim", "32"], ["--backbone.preset", "base"]])
def test_init_refuses_another_shape(tmp_path: Path, words: list[str]):
    with pytest.raises(ConfigError, match="but the model in init.from"):
        resolve([*NAMED, "--init.from", model_folder(tmp_path), *words])


def test_init_accepts_what_the_model_has_anyway(tmp_path: Path):
    folder = model_folder(tmp_path)
    words = ["--backbone.preset", "tiny", "--backbone.dim", "256"]
    assert resolve([*NAMED, "--init.from", folder, *words]).backbone == preset("tiny")


def test_init_takes_a_plain_hugging_face_folder_and_resolves_again(tmp_path: Path):
    model = tmp_path / "theirs"
    model.mkdir()
    theirs = {"model_type": "wav2vec2", "hidden_size": 64, "num_attention_heads": 4}
    (model / "config.json").write_text(json.dumps(theirs))
    config = resolve([*NAMED, "--init.from", str(model), "--backbone.layerdrop", "0"])
    assert (config.backbone.preset, config.backbone.dim) == ("huggingface", 64)
    saved = tmp_path / "run" / "config.yaml"
    config.save(saved)
    assert resolve(["--config", str(saved)]).to_dict() == config.to_dict()
    (model / "config.json").unlink()  # moved away since
    assert from_file(saved).to_dict() == config.to_dict()


def test_init_takes_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    folder = model_folder(tmp_path, dim=64)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: folder)
    assert resolve([*NAMED, "--init.from", "some/model"]).backbone.dim == 64


def test_inputs_are_known_by_their_contents(tmp_path: Path):
    folder = model_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    manifest = write(tmp_path, "a.jsonl", "one\n")
    config = resolve([*NAMED, "--init.from", folder, "--data.train", manifest])
    first = input_hashes(config)
    assert input_hashes(config) == first
    write(tmp_path, "a.jsonl", "two\n")
    second = input_hashes(config)
    assert second["data.train"] != first["data.train"]
    assert second["init.from"] == first["init.from"] != ""


def test_settings_that_the_network_ignores_are_refused():
    words = ["--objective.name", "wav2vec", "--backbone.preset", "wav2vec-tiny"]
    with pytest.raises(ConfigError, match="'conv' has no use for heads, layerdrop"):
        resolve([*words, "--backbone.heads", "8", "--backbone.layerdrop", "0.1"])
    with pytest.raises(ConfigError, match="'transformer' has no use for context_kernels"):
        resolve([*NAMED, "--backbone.context_kernels", "[3]"])


def test_init_points_to_the_model_inside_a_run(tmp_path: Path):
    (tmp_path / "model").mkdir()
    model_folder(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"no model folder.*did you mean .*/model\?"):
        resolve([*NAMED, "--init.from", str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "device", "message"),
    [
        ([], "cpu", "data.train is not set"),
        (["--data.train=a", "--data.batch_sec=99"], "cpu", "cannot hold more audio than an update"),
        (["--data.train=a", "--engine.precision=fp16"], "cpu", "no GPU"),
        (["--data.train=a", "--backbone.feature_grad_mult=0"], "cpu", "would shrink it all the"),
    ],
)
def test_cross_checks(words: list[str], device: str, message: str):
    with pytest.raises(ConfigError, match=message):
        cross_checks(resolve([*NAMED, *words]), device=device)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--objective.freeze_steps=9", "optim.weight_decay is 0.01 and would move the frozen"),
        ("--objective.layers=weighted --objective.norm=time", "set backbone.dropout to 0"),
        (
            "--objective.freeze_features=false --backbone.feature_grad_mult=0 "
            "--optim.weight_decay=0",
            "freeze_features is false, but backbone.feature_grad_mult is 0",
        ),
        ("--objective.channel_mask.length=129", "has 256 channels.*set it to 128 or less"),
    ],
)
def test_cross_checks_of_fine_tuning(words: str, message: str):
    with pytest.raises(ConfigError, match=message):
        cross_checks(resolve(["--objective.name=ctc", "--data.train=a", *words.split()]))


def test_cross_checks_accept_sound_settings():
    cross_checks(resolve([*NAMED, "--data.train=a", "--engine.precision=fp16"]), device="cuda")
