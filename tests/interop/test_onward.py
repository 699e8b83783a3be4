"""Models go on elsewhere, and those from elsewhere go on here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

import speechssl
from speechssl.cli.main import main
from speechssl.downstream.ctc import CTC
from speechssl.downstream.decode import decode, spell
from speechssl.errors import ConfigError
from speechssl.models.backbone import Backbone
from speechssl.models.bundle import load, save_bundle
from speechssl.models.presets import preset
from speechssl.objectives.wav2vec2 import Wav2Vec2
from tests.interop.shaken import shaken

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.interop

CLASSES = ("<pad>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SIZES = {
    "conv_dims": (16,) * 7, "dim": 32, "layers": 2, "heads": 2, "ffn": 48, "pos_kernel": 8,
    "pos_groups": 4, "dropout": 0.0,
}  # fmt: skip


def wordy(**more) -> CTC:
    """A recogniser of random weights that writes words: its output is spread over classes."""
    model = shaken(CTC(Backbone(preset("tiny", **(SIZES | more))), CTC.Config(), CLASSES))
    with torch.no_grad():
        noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(2))
        mean = model.backbone(noise, torch.tensor([16000])).x.mean((0, 1))
        model.lm_head.weight.mul_(20.0)
        model.lm_head.bias.copy_(-model.lm_head.weight @ mean)
    return model


def real_utterances(real_speech: Path, count: int) -> list[Path]:
    manifest = real_speech / "so762" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    chosen = [row for row in rows if row.get("split") == "test"] or rows
    names = [row.get("audio") or row.get("audio_filepath") for row in chosen[:count]]
    return [manifest.parent / name for name in names]


@pytest.mark.parametrize("mode", ["layer", "group"])
def test_their_pipeline_hears_the_same_words(mode: str, real_speech: Path, tmp_path: Path):
    """Word for word, on real speech: ours, their pipeline, and ONNX Runtime."""
    about = {} if mode == "layer" else {"conv_norm": "group", "norm": "post", "normalize": False}
    save_bundle(tmp_path / "m", wordy(**about), card={})
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    pipeline = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / "hf"))
    files = real_utterances(real_speech, 8)
    ours = [found.text for found in speechssl.transcribe(files, tmp_path / "m")]
    waves = [sf.read(file, dtype="float32")[0] for file in files]
    theirs = [pipeline({"raw": wave, "sampling_rate": 16000})["text"] for wave in waves]
    assert all(ours)
    assert len(set("".join(ours))) > 3
    assert [" ".join(text.split()) for text in theirs] == ours


@pytest.mark.slow
def test_onnx_hears_the_same_words(real_speech: Path, tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from speechssl.interop.onnx import session

    save_bundle(tmp_path / "m", wordy(), card={})
    assert main(["export", str(tmp_path / "m"), str(tmp_path / "m.onnx")]) == 0
    files = real_utterances(real_speech, 8)
    ours = [found.text for found in speechssl.transcribe(files, tmp_path / "m")]
    run = session(tmp_path / "m.onnx")
    for file, expected in zip(files, ours, strict=True):
        wave = sf.read(file, dtype="float32")[0]
        log_probs, frames = run(wave[None], np.array([len(wave)]))
        (best,) = decode(torch.tensor(log_probs), torch.tensor(frames), 1)
        assert spell(best.ids, CLASSES) == expected


def test_our_pretrained_model_learns_ctc_there(tmp_path: Path):
    """Ten updates of their CTC on a model that we pre-trained: the loss falls."""
    torch.manual_seed(1)
    settings = Wav2Vec2.Config(groups=2, codes=8, code_dim=8, final_dim=8)
    ours = Wav2Vec2(Backbone(preset("tiny", **SIZES)), settings)
    save_bundle(tmp_path / "m", ours, card={})
    theirs, about = transformers.Wav2Vec2ForCTC.from_pretrained(
        tmp_path / "m", vocab_size=5, pad_token_id=0, output_loading_info=True,
        mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    assert {key.split(".")[0] for key in about["missing_keys"]} == {"lm_head"}
    loaded = theirs.wav2vec2.encoder.layers[1].feed_forward.output_dense.weight
    mine = ours.backbone.encoder.layers[1].feed_forward.output_dense.weight
    torch.testing.assert_close(loaded, mine, rtol=0, atol=0)
    generator = torch.Generator().manual_seed(1)
    wave = torch.randn(4, 8000, generator=generator)
    labels = torch.randint(1, 5, (4, 6), generator=generator)
    optimiser = torch.optim.AdamW(theirs.parameters(), lr=1e-3)
    theirs.train()
    losses = []
    for _ in range(10):
        loss = theirs(wave, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def made_elsewhere(kind: str, folder: Path) -> Path:
    """A pre-training model of another toolkit on disk."""
    if kind == "fairseq":
        from speechssl.models.formats.keymap import from_ours

        settings = Wav2Vec2.Config(groups=2, codes=8, code_dim=8, final_dim=8)
        ours = shaken(Wav2Vec2(Backbone(preset("tiny", **SIZES)), settings))
        from speechssl.interop.convert import fairseq_settings

        renamed = {k.removeprefix("backbone."): v for k, v in ours.state_dict().items()}
        cfg = fairseq_settings(ours.backbone.cfg)
        cfg["model"] |= {"latent_groups": 2}
        state = from_ours(renamed, "fairseq", conv_norm="layer")
        torch.save({"model": state, "cfg": cfg}, folder / "w2v.pt")
        return folder / "w2v.pt"
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True,
        num_codevectors_per_group=8, codevector_dim=8, proj_codevector_dim=8,
    )  # fmt: skip
    theirs = shaken(transformers.Wav2Vec2ForPreTraining(config))
    theirs.save_pretrained(folder / "hf")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / "hf")
    if kind == "bin":
        torch.save(theirs.state_dict(), folder / "hf" / "pytorch_model.bin")
        (folder / "hf" / "model.safetensors").unlink()
    return folder / "hf"


@pytest.mark.parametrize("kind", ["hf", "bin", "fairseq"])
def test_pretraining_goes_on_here(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start = made_elsewhere(kind, tmp_path)
    assert main(["show", str(start)]) == 0
    assert "320 samples, 20 ms" in capsys.readouterr().out
    rng = np.random.default_rng(1)
    for i in range(4):
        sf.write(tmp_path / f"u{i}.wav", rng.normal(0, 0.1, 16000), 16000)
    assert main(["manifest", str(tmp_path), str(tmp_path / "all.jsonl")]) == 0
    words = (
        f"--data.train={tmp_path / 'all.jsonl'} --data.valid={tmp_path / 'all.jsonl'} "
        "--data.max_sec=1 --data.batch_sec=4 --data.update_sec=4 --data.workers=0 "
        "--objective.name=wav2vec2 --objective.groups=2 --objective.codes=8 "
        "--objective.code_dim=8 --objective.final_dim=8 --objective.num_negatives=5 "
        f"--optim.steps=2 --init.from={start} --run.out={tmp_path / 'run'}"
    ).split()
    assert main(["train", *words]) == 0
    told = capsys.readouterr().out
    assert "head from the same model" in told
    assert (tmp_path / "run" / "config.yaml").is_file()
    before, after = load(start).backbone, load(tmp_path / "run" / "model").backbone
    name = "encoder.layers.0.feed_forward.output_dense.weight"
    moved = (before.state_dict()[name] - after.state_dict()[name]).abs().max()
    assert 0 < float(moved) < 0.05  # it went on from there, not from random


@torch.no_grad()
def test_both_conventions_of_hidden_states(tmp_path: Path):
    """`hf` is what transformers 5 calls hidden_states; `s3prl` ends in what it calls the output."""
    ours = shaken(Backbone(preset("tiny", **(SIZES | {"normalize": False}))))
    save_bundle(tmp_path / "m", ours, card={})
    theirs = transformers.Wav2Vec2Model.from_pretrained(tmp_path / "m").eval()
    wave = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(3))
    expected = theirs(wave, output_hidden_states=True)
    got = {}
    for convention in ("hf", "s3prl"):
        extract = speechssl.Extractor(tmp_path / "m", convention=convention)
        (got[convention],) = extract([wave[0].numpy()], rate_hz=16000, layer="all")
        (last,) = extract([wave[0].numpy()], rate_hz=16000)
        np.testing.assert_array_equal(last.values, got[convention].values[-1])
    for mine, other in zip(got["hf"].values, expected.hidden_states, strict=True):
        np.testing.assert_allclose(mine, other[0], atol=1e-4)
    np.testing.assert_allclose(got["s3prl"].values[-1], expected.last_hidden_state[0], atol=1e-4)
    assert np.abs(got["s3prl"].values[-1] - got["hf"].values[-1]).max() > 0.1
    with pytest.raises(ConfigError, match="convention"):
        speechssl.Extractor(tmp_path / "m", convention="fairseq")  # type: ignore[arg-type]
