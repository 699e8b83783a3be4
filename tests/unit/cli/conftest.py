"""A tiny corpus and a run on it, made once for all tests of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speechssl.cli.main import main

TINY = """
data: {max_sec: 1, batch_sec: 4, update_sec: 4, workers: 0}
backbone:
  {dim: 16, layers: 2, heads: 2, ffn: 32, pos_kernel: 8, pos_groups: 4,
   conv_dims: [8, 8, 8, 8, 8, 8, 8]}
objective: {name: wav2vec2, num_negatives: 5, final_dim: 8, code_dim: 8, codes: 8}
optim: {steps: 2}
run: {log_every_steps: 1, valid_every_steps: 2, save_every_steps: 2}
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with audio/, train.jsonl and valid.jsonl: two speakers, twelve utterances of 0.6 s."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "audio").mkdir()
    rng = np.random.default_rng(1)
    lines: dict[str, list[str]] = {"train": [], "valid": []}
    for i in range(12):
        pitch = 120 * (1 + i % 2)
        wave = np.sin(2 * np.pi * pitch * np.arange(9600) / 16000) * 0.1
        name = f"audio/u{i}.flac"
        sf.write(folder / name, wave + rng.normal(0, 0.01, 9600), 16000)
        row = {"id": f"u{i}", "audio": name, "num_samples": 9600, "rate_hz": 16000}
        row |= {"text": "AB" if i % 2 else "B A", "speaker": f"s{i % 2}", "digit": i // 2 % 2}
        lines["train" if i < 8 else "valid"].append(json.dumps(row))
    for split, rows in lines.items():
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def train(corpus: Path, out: Path, *words: str) -> Path:
    """Train through the command line; the run folder."""
    data = [
        "--data.train",
        str(corpus / "train.jsonl"),
        "--data.valid",
        str(corpus / "valid.jsonl"),
    ]
    assert main(["train", *data, "--run.out", str(out), *words]) == 0
    return out


@pytest.fixture(scope="session")
def pretrained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training run."""
    out = tmp_path_factory.mktemp("runs") / "ssl"
    return train(corpus, out, "--config", str(corpus / "tiny.yaml"))


def finetune(corpus: Path, pretrained: Path, name: str, *words: str) -> Path:
    """A finished run of a supervised objective on the pre-trained model."""
    sections = ("--data.max_sec=1", "--data.batch_sec=4", "--data.update_sec=4", "--data.workers=0")
    return train(
        corpus,
        pretrained.parent / name,
        *sections,
        "--optim.steps=1",
        f"--objective.name={name}",
        f"--init.from={pretrained / 'model'}",
        *words,
    )


@pytest.fixture(scope="session")
def recogniser(corpus: Path, pretrained: Path) -> Path:
    """A finished CTC run."""
    return finetune(
        corpus, pretrained, "ctc", "--objective.mask.prob=0", "--objective.channel_mask.prob=0"
    )


@pytest.fixture(scope="session")
def speaker_model(corpus: Path, pretrained: Path) -> Path:
    """A finished speaker run."""
    return finetune(corpus, pretrained, "speaker")
