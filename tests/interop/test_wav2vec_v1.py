"""fairseq's wav2vec (v1) files load without fairseq and compute the same."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from speechssl.errors import CheckpointError, ConfigError
from speechssl.models.bundle import load, save_bundle
from speechssl.models.formats.foreign import read_foreign
from speechssl.models.start import start_from
from speechssl.objectives.wav2vec import Wav2Vec
from tests.interop.shaken import shaken
from tests.reference.fairseq_wav2vec import FairseqWav2Vec, noise, settings

pytestmark = pytest.mark.interop
CONVS = [(12, 10, 5), (12, 8, 4), (16, 4, 2), (16, 4, 2), (16, 4, 2), (16, 1, 1)]
CONTEXT = [(20, 2, 1), (20, 3, 1), (20, 4, 1)]


def saved(folder: Path, form: str = "args", **changed) -> FairseqWav2Vec:
    theirs = shaken(FairseqWav2Vec(CONVS, CONTEXT, 5))
    options = settings(CONVS, CONTEXT) | changed
    content = {"model": theirs.state_dict()}
    if form == "args":
        content["args"] = argparse.Namespace(**options)
    else:
        content["cfg"] = {"model": options, "task": {}}
    torch.save(content, folder / "wav2vec.pt")
    return theirs


@pytest.mark.parametrize("form", ["args", "cfg"])
@torch.no_grad()
def test_features_context_and_predictions_are_equal(form: str, tmp_path: Path):
    theirs = saved(tmp_path, form)
    bundle = load(tmp_path / "wav2vec.pt")
    ours = bundle.objective
    assert isinstance(ours, Wav2Vec)
    assert (ours.cfg.num_steps, ours.cfg.num_negatives) == (5, 7)
    wave = noise(8000)
    z, c = theirs(wave)
    local = ours.backbone.encode(wave, torch.tensor([8000]))
    context = ours.backbone.context(local)
    torch.testing.assert_close(local.x, z.transpose(1, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(context.x, c.transpose(1, 2), atol=1e-4, rtol=0)
    expected = theirs.predictions(c).permute(0, 2, 3, 1)  # (B, T, K, C)
    torch.testing.assert_close(ours.predict(context.x), expected, atol=1e-4, rtol=0)
    save_bundle(tmp_path / "ours", ours, card={})
    again = Wav2Vec(load(tmp_path / "ours").backbone, ours.cfg)
    assert start_from(again, tmp_path / "wav2vec.pt") == "head from the same model"


def test_what_cannot_be_computed_here_is_refused(tmp_path: Path):
    for key, value in (("log_compression", False), ("residual_scale", 1.0), ("agg_zero_pad", True),
                       ("conv_feature_layers", "__import__('os')")):  # fmt: skip
        saved(tmp_path, **{key: value})
        with pytest.raises(CheckpointError, match=key):
            load(tmp_path / "wav2vec.pt")
    theirs = saved(tmp_path)
    with pytest.raises(ConfigError, match="leave them out"):
        read_foreign(tmp_path / "wav2vec.pt", heads=2)
    state = theirs.state_dict() | {"vector_quantizer.vars": torch.zeros(1, 4, 2)}
    about = argparse.Namespace(**settings(CONVS, CONTEXT))
    torch.save({"model": state, "args": about}, tmp_path / "vq.pt")
    with pytest.raises(CheckpointError, match="vq-wav2vec"):
        load(tmp_path / "vq.pt")
    torch.save(
        {"model": theirs.state_dict() | {"x": torch.zeros(1)}, "args": about}, tmp_path / "x.pt"
    )
    with pytest.raises(CheckpointError, match="1 tensors of no wav2vec: x"):
        load(tmp_path / "x.pt")
