"""`speechssl cluster`, and HuBERT's two rounds on what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speechssl.cli.main import main
from speechssl.data.labels import LabelFile, place_of
from speechssl.data.manifest import read_manifest

HUBERT = ("--objective.name=hubert", "--objective.final_dim=8", "--optim.steps=2")


def cluster(corpus: Path, out: Path, *words: str) -> int:
    manifests = [str(corpus / "train.jsonl"), str(corpus / "valid.jsonl")]
    new = () if "--kmeans" in words else ("--clusters", "8")
    return main(["cluster", *manifests, "--out", str(out), *new, *words])


def train(labels: Path, corpus: Path, out: Path, *words: str) -> int:
    tiny = (corpus / "tiny.yaml").read_text()
    config = out.parent / "tiny.yaml"
    config.write_text("\n".join(row for row in tiny.splitlines() if "objective" not in row))
    data = [
        "--data.train",
        str(labels / "train.jsonl"),
        "--data.valid",
        str(labels / "valid.jsonl"),
    ]
    out_words = ["--run.out", str(out)]
    return main(["train", "--config", str(config), *data, *HUBERT, *out_words, *words])


def test_two_rounds_of_hubert(corpus: Path, tmp_path: Path, capsys):
    first, second = tmp_path / "labels1", tmp_path / "labels2"
    assert cluster(corpus, first) == 0
    told = capsys.readouterr().out
    assert "mfcc39-k8-" in told
    assert "speakers: PNMI" in told
    assert f"next: speechssl train --objective.name hubert --data.train {first}" in told
    found = json.loads((first / "labels.json").read_text())
    assert found["train.jsonl"]["frames"] == 8 * 58  # 0.6 s of 10 ms frames
    assert found["train.jsonl"]["clustering"] == found["valid.jsonl"]["clustering"]

    assert train(first, corpus, tmp_path / "one") == 0
    told = capsys.readouterr().out
    assert "classes    8 clusters of mfcc39-k8-" in told
    assert "chance     masked_loss 2.079" in told

    model = str(tmp_path / "one" / "model")
    assert cluster(corpus, second, "--model", model, "--layer", "1") == 0
    assert "layer1-k8-" in capsys.readouterr().out
    # The head of the first round knows other clusters: a new one is drawn.
    assert train(second, corpus, tmp_path / "two", "--init.from", model) == 0
    assert "other classes" in capsys.readouterr().out

    # A model is judged by labels of its own clustering and no other.
    assert main(["evaluate", model, str(first / "valid.jsonl")]) == 0
    assert "accuracy_unmasked" in capsys.readouterr().out
    assert main(["evaluate", model, str(second / "valid.jsonl")]) == 3
    assert "label the manifest with that one: speechssl cluster" in capsys.readouterr().err
    both = [str(first / "train.jsonl"), str(second / "valid.jsonl")]
    words = ["--data.train", both[0], "--data.valid", both[1], *HUBERT, "--run.out"]
    assert main(["train", "--config", str(tmp_path / "tiny.yaml"), *words, "mixed"]) == 3
    assert "label all manifests in one call" in capsys.readouterr().err


def test_shards_go_on_and_are_shared_out(corpus: Path, tmp_path: Path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cluster(corpus, whole) == 0
    assert cluster(corpus, parts, "--kmeans", str(whole), "--shard-sec", "1.3") == 0

    def rows(folder: Path) -> dict[str, list[int]]:
        found = {}
        for u in read_manifest(folder / "train.jsonl"):
            path, row = place_of(u)
            found[u.id] = LabelFile(path).row(row).tolist()
        return found

    assert len(list(parts.glob("train_*.labels"))) == 4
    assert rows(parts) == rows(whole)
    # As if killed in the middle: what is done is left alone, the rest is made again.
    for path in [parts / "train.jsonl", *parts.glob("train_00001_*")]:
        path.unlink()
    kept = (parts / "train_00000_00004.labels").stat().st_mtime_ns
    # The second of two processes makes that shard, the first joins them.
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cluster(corpus, parts, "--kmeans", str(whole), "--shard-sec", "1.3") == 0
    assert not (parts / "train.jsonl").exists()
    monkeypatch.setenv("RANK", "0")
    assert cluster(corpus, parts, "--kmeans", str(whole), "--shard-sec", "1.3") == 0
    assert rows(parts) == rows(whole)
    assert (parts / "train_00000_00004.labels").stat().st_mtime_ns == kept


def test_other_settings_in_the_same_folder_are_refused(corpus: Path, tmp_path: Path, capsys):
    assert cluster(corpus, tmp_path / "a") == 0
    assert cluster(corpus, tmp_path / "a", "--norm", "mean") == 2
    assert "written with other settings (norm)" in capsys.readouterr().err
    words = ("--norm", "mean", "--kmeans", str(tmp_path / "a"))
    assert cluster(corpus, tmp_path / "b", *words) == 2
    assert "its clusters are of norm 'none', asked for is 'mean'" in capsys.readouterr().err


def test_every_process_finds_out_about_other_settings(corpus: Path, tmp_path: Path, monkeypatch):
    assert cluster(corpus, tmp_path / "a") == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    # Or it would go on with the clusters that lie there.
    assert cluster(corpus, tmp_path / "a", "--norm", "mean") == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layer", "1"), "--model and --layer belong together"),
        (("--fit-frames", "3"), "--fit-frames: got 3"),
        (("--kmeans", "x", "--fit-frames", "9", "--seed", "2"), "--fit-frames, --seed: of new"),
    ],
)
def test_bad_options_are_told(corpus: Path, tmp_path: Path, capsys, words, told):
    assert cluster(corpus, tmp_path / "a", *words) == 2
    assert told in capsys.readouterr().err
    assert main(["cluster", str(corpus / "train.jsonl"), "--out", str(corpus)]) == 2
    assert "holds a manifest to be labelled" in capsys.readouterr().err


def test_silence_gives_no_labels_to_learn_from(tmp_path: Path, capsys):
    wave = np.zeros(32000)
    wave[:1600] = np.random.default_rng(0).normal(0, 0.1, 1600)
    sf.write(tmp_path / "a.wav", wave, 16000)
    row = {"id": "a", "audio": "a.wav", "num_samples": 32000, "rate_hz": 16000}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--out", str(tmp_path / "out"), "--clusters", "6"]
    assert main(["cluster", str(tmp_path / "m.jsonl"), *words]) == 3
    assert "labels are degenerate" in capsys.readouterr().err
    assert not (tmp_path / "out" / "m.jsonl").exists()


def test_unreadable_audio_is_left_out_and_counted(corpus: Path, tmp_path: Path, capsys):
    rows = (corpus / "train.jsonl").read_text().splitlines()
    broken = json.loads(rows[0]) | {"id": "broken", "audio": "broken.wav"}
    rows = [
        json.dumps(json.loads(r) | {"audio": str(corpus / json.loads(r)["audio"])}) for r in rows
    ]
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    (tmp_path / "m.jsonl").write_text("\n".join([*rows, json.dumps(broken)]) + "\n")
    out = tmp_path / "out"
    assert main(["cluster", str(tmp_path / "m.jsonl"), "--out", str(out), "--clusters", "8"]) == 3
    assert "left out 1" in capsys.readouterr().err
    assert len(read_manifest(out / "m.jsonl")) == 8
