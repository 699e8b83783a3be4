"""The table of bad input, through the command line: counted or refused in one line, no traceback.

Every kind of file that a corpus of real recordings brings along, and what is typed wrongly.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.cli.main import main

RATE_HZ = 16_000
GOOD = ["eight", "fortyeight", "good0", "good1", "good2", "stereo"]


def noise(seconds: float, rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(round(seconds * rate_hz) + channels)
    wave = rng.normal(0, 0.1, (int(seconds * rate_hz), channels))
    return wave.astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each kind and three that are as they should be."""
    made = tmp_path / "recordings"
    made.mkdir()
    for i in range(3):
        soundfile.write(made / f"good{i}.flac", noise(0.8), RATE_HZ)
    soundfile.write(made / "eight.wav", noise(0.8, 8_000), 8_000)
    soundfile.write(made / "fortyeight.wav", noise(0.8, 48_000), 48_000)
    soundfile.write(made / "stereo.wav", noise(0.8, channels=2), RATE_HZ)
    soundfile.write(made / "click.wav", noise(0.01), RATE_HZ)
    soundfile.write(made / "silence.wav", np.zeros(RATE_HZ), RATE_HZ)
    soundfile.write(made / "header.wav", np.zeros(0), RATE_HZ)
    (made / "nothing.wav").write_bytes(b"")
    with_nan = noise(0.8)
    with_nan[100] = np.nan
    soundfile.write(made / "nan.wav", with_nan, RATE_HZ, subtype="FLOAT")
    soundfile.write(made / "cut.flac", noise(0.8), RATE_HZ)
    whole = (made / "cut.flac").read_bytes()
    (made / "cut.flac").write_bytes(whole[: len(whole) // 2])
    return made


def run(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> tuple[str, str]:
    """Stdout and stderr of a command line that must end with `code`, without a traceback."""
    capsys.readouterr()
    got = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert got == code, err
    return out, err


def complaint(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """The one line that a refused command line ends with."""
    _, err = run(capsys, code, *words)
    last = err.splitlines()[-1]
    assert last.startswith(f"speechssl {words[0]}: error: ")
    return last


def scan(capsys: pytest.CaptureFixture[str], folder: Path) -> Path:
    """The manifest of `folder`, every file decoded."""
    out = folder.parent / "all.jsonl"
    run(capsys, 0, "manifest", folder, out, "--full-check", "--max-bad-fraction", "0.9")
    return out


def training(corpus: Path, manifest: Path, out: Path, *words: str) -> list[object]:
    given = ["--config", corpus / "tiny.yaml", "--data.train", manifest, "--run.out", out]
    return ["train", *given, *words]


def test_full_check_counts_each_kind(folder, capsys):
    out = folder.parent / "all.jsonl"
    words = ("manifest", folder, out, "--full-check")
    said = complaint(capsys, 3, *words)
    assert "5 of 12 entries cannot be used, expected at most 1%" in said
    assert not out.exists()

    told, err = run(capsys, 0, *words, "--max-bad-fraction", "0.5", "--json")
    facts = json.loads(told)
    assert (facts["utterances"], facts["skipped"]) == (7, 5)
    assert facts["rates_hz"] == {"8000": 1, "16000": 5, "48000": 1}
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert ids == sorted([*GOOD, "click"])  # too short to train on, yet sound
    report = json.loads(Path(facts["skipped_list"]).read_text())
    kinds = {Path(item["where"]).name: item["kind"] for item in report["items"]}
    assert kinds.pop("cut.flac") in ("truncated", "corrupt")  # libsndfile's versions differ
    assert kinds == {
        "nothing.wav": "unreadable",
        "header.wav": "empty",
        "nan.wav": "nonfinite",
        "silence.wav": "silent",
    }
    assert all(str(folder / name) in err for name in ("nan.wav", "cut.flac", "nothing.wav"))


def test_headers_alone_find_what_headers_show(folder, capsys):
    words = ("manifest", folder, folder.parent / "all.jsonl", "--max-bad-fraction", "0.5")
    facts = json.loads(run(capsys, 0, *words, "--json")[0])
    assert facts["skipped"] in (2, 3)  # empty, header only; the cut file where its length tells


@pytest.mark.parametrize("kind", ["kaldi", "nemo"])
def test_listed_files_that_are_missing_are_counted(folder, capsys, kind):
    if kind == "kaldi":
        source = folder.parent / "data"
        source.mkdir()
        rows = f"a {folder / 'good0.flac'}\nb {folder / 'gone.flac'}\n"
        (source / "wav.scp").write_text(rows)
    else:
        source = folder.parent / "nemo.json"
        names = ("good0.flac", "gone.flac")
        rows = [{"audio_filepath": str(folder / name), "duration": 0.8} for name in names]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("manifest", source, folder.parent / "out.jsonl", "--max-bad-fraction", "0.5")
    told, err = run(capsys, 0, *words, "--json")
    assert json.loads(told)["utterances"] == 1
    assert "missing: 1" in err
    assert f"{folder / 'gone.flac'}: no such file" in err


def test_other_rates_and_stereo_are_trained_on(corpus, folder, tmp_path, capsys):
    manifest = scan(capsys, folder)
    out, _ = run(capsys, 0, *training(corpus, manifest, tmp_path / "run"))
    assert "6 utterances" in out
    assert "left out short: 1" in out
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2
    assert np.isfinite(last["loss"])


def test_bad_manifest_line_is_named(corpus, folder, tmp_path, capsys):
    manifest = scan(capsys, folder)
    lines = manifest.read_text().splitlines()
    bad = json.loads(lines[2]) | {"num_samples": "many"}
    manifest.write_text("\n".join([*lines[:2], json.dumps(bad), *lines[3:]]) + "\n")
    said = complaint(capsys, 3, *training(corpus, manifest, tmp_path / "run"))
    assert f"manifest {manifest} line 3 (id '{bad['id']}'): num_samples is 'many'" in said
    manifest.write_text("\n".join([*lines[:4], '{"id": ']) + "\n")
    for words in (("manifest", manifest), training(corpus, manifest, tmp_path / "run")):
        assert "line 5: not JSON" in complaint(capsys, 3, *words)
    assert not (tmp_path / "run").exists()


def test_unknown_key_names_the_nearest(corpus, tmp_path, capsys):
    manifest = corpus / "train.jsonl"
    words = training(corpus, manifest, tmp_path / "run", "--optim.warmup_step", "1")
    assert "optim.warmup_steps" in complaint(capsys, 2, *words)
    config = tmp_path / "wrong.yaml"
    config.write_text("data: {batch_secs: 4}\n")
    words = training(corpus, manifest, tmp_path / "run", "--config", str(config))
    said = complaint(capsys, 2, *words)
    assert "wrong.yaml:1" in said
    assert "data.batch_sec" in said


def test_file_lost_since_the_manifest_was_made(corpus, folder, tmp_path, capsys, caplog):
    manifest = scan(capsys, folder)
    (folder / "good0.flac").unlink()
    # Four updates are several epochs: the same file again is not one more.
    words = ("--data.update_sec", "4", "--optim.steps", "4")
    run(capsys, 0, *training(corpus, manifest, tmp_path / "run", *words))
    lost = [r for r in caplog.messages if r.startswith("skipped good0 (missing)")]
    assert len(lost) == 1
    assert str(folder / "good0.flac") in lost[0]

    (folder / "good1.flac").unlink()
    said = complaint(capsys, 3, *training(corpus, manifest, tmp_path / "second", *words))
    assert "2 of 6 utterances could not be read" in said
    assert str(folder / "good1.flac") in said
    assert "data.max_bad_fraction" in said
    assert "speechssl manifest" in said


def test_transcript_with_unknown_characters(corpus, recogniser, tmp_path, capsys):
    rows = [json.loads(line) for line in (corpus / "valid.jsonl").read_text().splitlines()]
    rows[0]["text"] = "ÄB"
    for row in rows:
        row["audio"] = str(corpus / row["audio"])
    manifest = tmp_path / "strange.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told, _ = run(capsys, 0, "evaluate", recogniser / "model", manifest, "--json")
    # Six words as written, one of them now fused and strange: it is scored, not left out.
    assert json.loads(told)["words"]["ref"] == 5

    # Training draws the vocabulary from the transcripts: only the word bar is strange to it.
    rows[0]["text"] = "A|B"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--data.train", manifest, "--objective.name", "ctc", "--run.out", tmp_path / "run")
    said = complaint(capsys, 3, "train", *words)
    assert "word bar" in said
    assert f"utterance '{rows[0]['id']}'" in said


def test_the_vocabulary_is_that_of_the_training_texts(
    corpus, pretrained, recogniser, tmp_path, capsys
):
    rows = [json.loads(line) for line in (corpus / "valid.jsonl").read_text().splitlines()]
    for row in rows:
        row["audio"] = str(corpus / row["audio"])
    rows[0]["text"], rows[1]["text"] = "ÄB", None
    manifest = tmp_path / "valid.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (
        f"--data.train={corpus / 'train.jsonl'} --data.valid={manifest} --data.max_sec=1 "
        f"--data.batch_sec=4 --data.update_sec=4 --data.workers=0 --optim.steps=1 "
        "--objective.name=ctc --objective.channel_mask.prob=0 "
        f"--init.from={pretrained / 'model'} --run.out={tmp_path / 'run'}"
    )
    told, _ = run(capsys, 0, "train", *words.split())
    assert "classes    4: <pad> | A B" in told
    assert "left out no_text: 1" in told
    assert "left out unknown_characters: 1" in told


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing.wav", "has 0 bytes"),
        ("header.wav", "0 samples"),
        ("nan.wav", "NaN or infinite"),
        ("cut.flac", "cut.flac: "),
        ("gone.wav", "no such file"),
    ],
)
def test_models_refuse_a_bad_file(folder, pretrained, recogniser, tmp_path, capsys, name, reason):
    for verb, model, out in (("predict", recogniser, ()), ("extract", pretrained, ("features",))):
        words = (verb, model / "model", folder / name, *(tmp_path / o for o in out))
        _, err = run(capsys, 3, *words)
        assert reason in err
        assert str(folder / name) in err


@pytest.mark.parametrize("name", ["click.wav", "eight.wav", "fortyeight.wav", "stereo.wav"])
def test_models_take_other_rates_stereo_and_short(
    folder, pretrained, recogniser, tmp_path, capsys, name
):
    from speechssl.extract.store import open_features

    run(capsys, 0, "predict", recogniser / "model", folder / name)
    run(capsys, 0, "extract", pretrained / "model", folder / name, tmp_path / "out")
    (features,) = open_features(tmp_path / "out").values()
    assert len(features) == (1 if name == "click.wav" else 39)
    assert np.isfinite(features).all()
