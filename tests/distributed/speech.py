"""A small corpus of noisy tones and the settings of a tiny wav2vec 2.0 on it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechssl.objectives.wav2vec2 import Wav2Vec2
from speechssl.types import Progress

ROOT = Path(__file__).resolve().parents[2]
RATE_HZ = 16_000

#: Sizes for the command line and for tests that build the model themselves.
BACKBONE: dict[str, Any] = {
    "dim": 32,
    "layers": 2,
    "heads": 2,
    "ffn": 64,
    "pos_kernel": 8,
    "pos_groups": 4,
    "conv_dims": (24,) * 7,
}
OBJECTIVE: dict[str, Any] = {"num_negatives": 10, "final_dim": 16, "code_dim": 16, "codes": 16}
DATA: dict[str, Any] = {"max_sec": 2.0, "batch_sec": 6.0, "update_sec": 6.0, "workers": 0}


class MayBeKilled(Wav2Vec2):
    """wav2vec 2.0 whose process dies, as by kill -9, before update KILL_BEFORE_STEP."""

    def begin_step(self, progress: Progress) -> None:
        super().begin_step(progress)
        if os.environ.get("KILL_BEFORE_STEP") == str(progress.step):
            os.kill(os.getpid(), signal.SIGKILL)


def corpus(folder: Path) -> None:
    """Twelve utterances of 0.6 to 2 s in `train.jsonl`, three more in `valid.jsonl`."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(15):
        samples = int(RATE_HZ * rng.uniform(0.6, 2.0))
        tone = 0.1 * np.sin(2 * np.pi * (100 + 20 * i) * np.arange(samples) / RATE_HZ)
        soundfile.write(folder / f"u{i}.wav", tone + rng.normal(0, 0.02, samples), RATE_HZ)
        row = {"id": f"u{i}", "audio": f"u{i}.wav", "num_samples": samples, "rate_hz": RATE_HZ}
        rows.append(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text("".join(rows[:12]))
    (folder / "valid.jsonl").write_text("".join(rows[12:]))


def words(folder: Path, out: Path, *options: str) -> list[str]:
    """`train ...`: what follows `speechssl` on the command line."""
    sections = {"backbone": BACKBONE, "objective": OBJECTIVE, "data": DATA}
    given = {
        f"--{section}.{key}": str(list(value) if isinstance(value, tuple) else value)
        for section, settings in sections.items()
        for key, value in settings.items()
    }
    given |= {
        "--data.train": str(folder / "train.jsonl"),
        "--objective.name": "wav2vec2",
        "--optim.lr": "1e-3",
        "--run.log_every_steps": "1",
        "--run.out": str(out),
    }
    given |= dict(zip(options[::2], options[1::2], strict=True))
    return ["train", *(word for pair in given.items() for word in pair)]


def launcher(name: str) -> list[str]:
    """The command that starts two processes of a module, up to the module's name."""
    script = str(Path(sys.executable).with_name(name))
    if name == "torchrun":
        return [sys.executable, script, "--standalone", "--nproc_per_node", "2", "-m"]
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    return [sys.executable, script, "--num_gpus", "2", "--master_port", port, "--module"]


def call(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would on a machine without GPU."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    quiet = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        env=inherited | quiet | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
    )


def told(out: Path) -> list[dict]:
    """The lines of metrics.jsonl less clocks."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    clocks = ("time", "audio_sec_per_sec")
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]
