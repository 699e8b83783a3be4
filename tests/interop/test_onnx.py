"""Graphs under ONNX Runtime compute what PyTorch computes, at any batch and length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.cli.main import main
from speechssl.downstream.ctc import CTC
from speechssl.downstream.speaker import Speaker
from speechssl.errors import CheckpointError, ConfigError
from speechssl.interop import onnx as graphs
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import load, load_bundle, save_bundle
from speechssl.models.presets import preset
from tests.interop.shaken import shaken

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.interop, pytest.mark.slow]

SMALL = {"dim": 32, "layers": 2, "heads": 2, "ffn": 48, "pos_kernel": 8, "pos_groups": 4}
CONVS = {"conv_dims": (16,) * 7}
CLASSES = ("<pad>", "|", "A", "B", "'")
KINDS = {
    "layer": CONVS,
    "group": CONVS | {"conv_norm": "group", "norm": "post", "pos_conv": "batch_norm"},
    "wavlm": CONVS | {"attention_positions": "gated_relative", "rel_buckets": 16},
    "stack": CONVS
    | {"projection_norm": False, "pos_conv": "stack", "pos_depth": 3, "pos_kernel": 5},
    "filterbank": {"preset": "filterbank-tiny", "conv_dims": (16, 24, 24)},
    "causal": CONVS | {"causal": True},
}


def backbone(kind: str) -> Backbone:
    sizes = SMALL | KINDS[kind]
    return shaken(Backbone(preset(sizes.pop("preset", "tiny"), **sizes)))


@pytest.mark.parametrize("kind", KINDS)
def test_ctc_graphs(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = shaken(CTC(backbone(kind), CTC.Config(), CLASSES))
    save_bundle(tmp_path / "m", model, card={})
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "x.onnx"), "--int8"]) == 0
    told = capsys.readouterr().out
    assert "log_probs" in told
    assert "x.int8.onnx" in told
    import onnx

    facts = {p.key: json.loads(p.value) for p in onnx.load(tmp_path / "x.onnx").metadata_props}
    assert facts["classes"] == list(CLASSES)
    assert facts["hop_samples"] == model.backbone.geometry.hop
    # By our own hand once more: other lengths than those of the exporter's check.
    wave = 0.1 * torch.randn(2, 6001, generator=torch.Generator().manual_seed(7))
    lens = torch.tensor([6001, 3000])
    wave[1, 3000:] = 0.0
    got, frames = graphs.session(tmp_path / "x.onnx")(wave.numpy(), lens.numpy())
    with torch.no_grad():
        states = model.backbone(wave, lens)
        expected = model.lm_head(states.x).log_softmax(-1)
    assert frames.tolist() == states.lens.tolist()
    for row, length in enumerate(frames.tolist()):
        np.testing.assert_allclose(got[row, :length], expected[row, :length], atol=1e-4)
    small, _ = graphs.session(tmp_path / "x.int8.onnx")(wave.numpy(), lens.numpy())
    difference = np.abs(small[0] - got[0]).max()
    assert 0 < difference < 1.0
    assert (tmp_path / "x.int8.onnx").stat().st_size < (tmp_path / "x.onnx").stat().st_size


@torch.no_grad()
def test_features_of_a_layer_and_scores(tmp_path: Path, capsys):
    speaker = shaken(Speaker(backbone("layer"), Speaker.Config(proj_dim=6), ["a", "b", "c"]))
    save_bundle(tmp_path / "m", speaker, card={})
    wave = 0.1 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(7))
    lens = torch.tensor([5000])
    states = speaker.backbone(wave, lens, layers=True)
    for layer in (0, 2):
        words = ["--layer", str(layer)]
        assert main(["export", str(tmp_path / "m"), str(tmp_path / "f.onnx"), *words]) == 0
        got, _ = graphs.session(tmp_path / "f.onnx")(wave.numpy(), lens.numpy())
        np.testing.assert_allclose(got, states.layers[layer], atol=1e-4)
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "s.onnx")]) == 0
    assert "scores" in capsys.readouterr().out
    got, _ = graphs.session(tmp_path / "s.onnx")(wave.numpy(), lens.numpy())
    assert got.shape == (1, 3)
    with pytest.raises(ConfigError, match="expected 0 to 2"):
        graphs.Portable(load(tmp_path / "m"), 3)


def test_a_graph_of_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_bundle(tmp_path / "m", backbone("layer"), card={})
    module = graphs.Portable(load_bundle(tmp_path / "m"))
    honest = graphs.compare

    def beside_another(module: graphs.Portable, path: Path) -> list[graphs.Check]:
        for parameter in module.model.parameters():
            parameter.mul_(1.01)
        return honest(module, path)

    monkeypatch.setattr(graphs, "compare", beside_another)
    with pytest.raises(CheckpointError, match="nothing written"):
        graphs.export(module, tmp_path / "x.onnx")
    assert not list(tmp_path.glob("*.onnx*"))


@pytest.mark.parametrize("kind", ["wav2vec-tiny", "gru-tiny"])
def test_what_has_no_graph_says_so(kind: str, tmp_path: Path, capsys):
    save_bundle(tmp_path / "m", Backbone(preset(kind)), card={})
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "x.onnx")]) == 2
    assert "context 'transformer'" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "x.pt")]) == 2
    assert "ends in .onnx" in capsys.readouterr().err
