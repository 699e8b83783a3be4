"""The hub and torchaudio's bundles, without a network: what would be asked, and what is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchaudio

from speechssl.cli.main import main
from speechssl.downstream.ctc import CTC
from speechssl.errors import CheckpointError
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import backbone_config, load, locate, save_bundle
from speechssl.models.presets import preset
from speechssl.models.start import start_from
from tests.interop.shaken import shaken

pytestmark = pytest.mark.interop
SMALL = {"dim": 32, "layers": 2, "heads": 2, "ffn": 48, "pos_kernel": 8, "pos_groups": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "m", Backbone(preset("tiny", conv_dims=(8,) * 7, **SMALL)), card={})
    return tmp_path / "m"


def test_push_makes_the_repository_and_uploads(folder: Path, monkeypatch, capsys):
    asked: list[tuple[str, dict]] = []

    class Api:
        def __getattr__(self, name: str):
            def call(*args, **words):
                asked.append((name, dict(enumerate(args)) | words))
                return SimpleNamespace(commit_url="https://hub/me/m/commit/1")

            return call

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert main(["push", str(folder), "me/m", "--private", "--revision", "v2"]) == 0
    assert [name for name, _ in asked] == ["create_repo", "create_branch", "upload_folder"]
    assert asked[0][1] == {0: "me/m", "private": True, "exist_ok": True}
    assert asked[2][1]["folder_path"] == str(folder)
    assert asked[2][1]["revision"] == "v2"
    told = capsys.readouterr().out
    assert "https://hub/me/m/commit/1" in told
    assert "speechssl.load('me/m')" in told


def test_nothing_damaged_is_pushed_and_refusals_are_told(folder: Path, monkeypatch, capsys):
    class Api:
        def create_repo(self, *args, **words):
            raise RuntimeError("401 Unauthorized")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert main(["push", str(folder), "me/m"]) == 1
    assert "401 Unauthorized; check network, name, and that you are logged in" in (
        capsys.readouterr().err
    )
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["push", str(folder), "me/m"]) == 1
    assert "damaged or truncated" in capsys.readouterr().err


def test_offline_asks_the_cache_alone(folder: Path, monkeypatch):
    asked = []

    def snapshot(model_id: str, **words):
        asked.append(words)
        if model_id == "me/absent":
            raise OSError("not in the cache")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    load("me/m", offline=True)
    load("me/m")
    assert [words["local_files_only"] for words in asked] == [True, False]
    with pytest.raises(CheckpointError, match="only what was fetched before"):
        load("me/absent", offline=True)


@pytest.mark.parametrize("name", ["HUBERT_BASE", "WAVLM_LARGE", "WAV2VEC2_ASR_BASE_960H"])
@torch.no_grad()
def test_bundles_of_torchaudio(name: str, monkeypatch, tmp_path: Path, capsys):
    """Their own code builds the network; only the download is ours, of random weights."""
    bundle = getattr(torchaudio.pipelines, name)
    small = {"encoder_embed_dim": 32, "encoder_num_layers": 2, "encoder_num_heads": 2}
    small |= {"encoder_ff_interm_features": 48, "encoder_pos_conv_kernel": 8}
    small |= {"encoder_pos_conv_groups": 4}
    params = bundle._params | small
    convs = [(16, kernel, stride) for _, kernel, stride in params["extractor_conv_layer_config"]]
    params["extractor_conv_layer_config"] = convs
    monkeypatch.setattr(bundle, "_params", params)
    build = torchaudio.models.wavlm_model if "WAVLM" in name else torchaudio.models.wav2vec2_model
    theirs = shaken(build(**params))
    monkeypatch.setattr(bundle, "_get_state_dict", lambda dl_kwargs: theirs.state_dict())
    found = load(f"torchaudio:{name}")
    wave = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(1))
    expected = bundle.get_model()(wave)[0]
    mine = found.backbone(wave, torch.tensor([4000])).x
    if "ASR" in name:
        assert isinstance(found.objective, CTC)
        assert found.classes[:3] == ("<pad>", "|", "E")
        mine = found.objective.lm_head(mine)
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)
    assert main(["convert", f"torchaudio:{name}", str(tmp_path / "ours")]) == 0
    assert "equal up to rounding" in capsys.readouterr().out
    fresh = Backbone(backbone_config(locate(f"torchaudio:{name}")))
    start_from(CTC(fresh, CTC.Config(), ("<pad>", "|", "A")), f"torchaudio:{name}")
    torch.testing.assert_close(fresh.state_dict(), found.backbone.state_dict(), rtol=0, atol=0)


def test_bundles_that_are_not_there(monkeypatch):
    with pytest.raises(CheckpointError, match="expected one of HUBERT_ASR_LARGE"):
        load("torchaudio:HUBERT_TINY")

    def unreachable(dl_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchaudio.pipelines.HUBERT_BASE, "_get_state_dict", unreachable)
    with pytest.raises(CheckpointError, match=r"no route to host; .*TORCH_HOME"):
        load("torchaudio:HUBERT_BASE")
