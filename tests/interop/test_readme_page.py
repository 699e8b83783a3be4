"""Each command of the page "Bring your model, take your model", on small models made here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio

from speechssl.cli.main import main
from speechssl.interop.convert import write_foreign
from speechssl.models.backbone import Backbone
from speechssl.models.presets import preset
from tests.interop.shaken import shaken

transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.interop, pytest.mark.slow]

SIZES = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


def hub_model(name: str, folder: Path) -> None:
    stem = {"facebook/wav2vec2-base": "Wav2Vec2", "microsoft/wavlm-base": "WavLM"}[name]
    config = getattr(transformers, f"{stem}Config")(**SIZES)
    shaken(getattr(transformers, f"{stem}Model")(config)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)


@pytest.fixture
def world(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the files and names of the page exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(root / "recipes")

    def snapshot(model_id: str, **words) -> str:
        folder = tmp_path / "hub" / model_id
        if not folder.is_dir():
            hub_model(model_id, folder)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)

    class Api:
        def __getattr__(self, name: str):
            return lambda *args, **words: SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    cfg = preset(
        "tiny", conv_dims=(16,) * 7, dim=64, layers=2, heads=1, ffn=48, pos_kernel=8, pos_groups=4
    )
    write_foreign(shaken(Backbone(cfg)), "fairseq", tmp_path / "wav2vec_small.pt")
    bundle = torchaudio.pipelines.HUBERT_BASE
    small = {"encoder_embed_dim": 32, "encoder_num_layers": 2, "encoder_num_heads": 2}
    small |= {"encoder_ff_interm_features": 48}
    monkeypatch.setattr(bundle, "_params", bundle._params | small)
    theirs = shaken(torchaudio.models.wav2vec2_model(**bundle._params))
    monkeypatch.setattr(bundle, "_get_state_dict", lambda dl_kwargs: theirs.state_dict())
    rng = np.random.default_rng(1)
    for split in ("labelled", "dev"):
        (tmp_path / split).mkdir()
        for i in range(4):
            sf.write(tmp_path / split / f"{i}.wav", rng.normal(0, 0.1, 16000), 16000)
        manifest = tmp_path / "exp" / f"{split}.jsonl"
        assert main(["manifest", str(tmp_path / split), str(manifest)]) == 0
        rows = [json.loads(line) | {"text": "AB A"} for line in manifest.read_text().splitlines()]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_every_command_of_the_page(world: Path, root: Path, capsys: pytest.CaptureFixture[str]):
    page = (root / "README.md").read_text().split("## Bring your model")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    lines = re.sub(r"\\\n", " ", block).splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("speechssl ")]
    assert len(commands) == 9
    for words in commands:
        if words[1] == "train":  # the same, shorter
            words += shlex.split("--optim.steps 2 --optim.warmup_steps 0 --optim.hold_steps 1")
            words += shlex.split("--data.workers 0 --engine.kind plain --engine.zero_stage 0")
        assert main(words[1:]) == 0, (words, capsys.readouterr())
    told = capsys.readouterr().out
    assert told.count("equal up to rounding") == 6
    for made in ("wavlm/model.safetensors", "hubert/config.json", "for_transformers/vocab.json",
                 "again.pt", "torchaudio.pt", "asr.onnx", "asr.int8.onnx"):  # fmt: skip
        assert (world / "exp" / made).is_file()
    assert torch.load(world / "exp" / "torchaudio.pt", weights_only=True)
