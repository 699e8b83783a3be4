"""Verbs that use a model: extract, evaluate, probe, predict, show, report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from speechssl.cli.inputs import pick_device
from speechssl.cli.main import main
from speechssl.cli.predict import formatted
from speechssl.cli.probe import wilson


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    """Run a verb with --json; its object."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_training_leaves_model_settings_and_chance(pretrained: Path):
    assert (pretrained / "model" / "model.safetensors").is_file()
    assert (pretrained / "config.yaml").is_file()
    assert json.loads((pretrained / "run.json").read_text())["chance"]["accuracy"] == 1 / 6


def test_extract(corpus: Path, pretrained: Path, tmp_path: Path):
    from speechssl.extract.store import open_features

    words = [str(pretrained / "model"), str(corpus / "valid.jsonl"), str(tmp_path / "out")]
    assert main(["extract", *words, "--layer", "all"]) == 0
    assert open_features(tmp_path / "out")["u8"].shape == (3, 29, 16)
    assert main(["extract", *words, "--layer", "last"]) == 2


def test_evaluate_ssl(corpus: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]):
    found = answer(capsys, "evaluate", pretrained / "model", corpus / "valid.jsonl")
    assert found["metrics"]["loss"] > 0
    assert found["chance"]["accuracy"] == 1 / 6
    assert {"std_l2", "mean_cos", "code_usage"} <= found["metrics"].keys()  # signs of collapse


@pytest.mark.parametrize("beam", ["1", "4"])
def test_evaluate_ctc(
    corpus: Path,
    recogniser: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    beam: str,
):
    words = ["evaluate", recogniser / "model", corpus / "valid.jsonl", "--out", tmp_path]
    found = answer(capsys, *words, "--beam", beam)
    assert found["words"]["ref"] == 6
    assert {"wer.txt", "wer.json", "ref.trn", "hyp.trn"} <= {p.name for p in tmp_path.iterdir()}
    assert json.loads((tmp_path / "wer.json").read_text())["wer"] == found["wer"]


def test_language_model_from_transcripts_to_words(
    corpus: Path, recogniser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("flashlight.lib.text")
    arpa, valid = str(tmp_path / "lm.arpa"), str(corpus / "valid.jsonl")
    words = ["lm", str(corpus / "train.jsonl"), "--order", "2", "--heldout", valid, "--out", arpa]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "2-gram" in told
    assert "perplexity" in told
    grid = ["--lm", arpa, "--lm-weight", "0.5", "1", "--word-score", "0", "30"]
    found = answer(capsys, "evaluate", recogniser / "model", valid, *grid)
    assert found["beam"] == 100
    assert (found["lm_weight"], found["word_score"]) in {(w, s) for w in (0.5, 1) for s in (0, 30)}
    one = ["--lm-weight", str(found["lm_weight"]), "--word-score", str(found["word_score"])]
    again = answer(capsys, "evaluate", recogniser / "model", valid, "--lm", arpa, *one)
    assert again["wer"] == found["wer"]  # what the grid promised
    # Weights are chosen by the comparison that is reported.
    policy = ["--text-policy", "upper"]
    found = answer(capsys, "evaluate", recogniser / "model", valid, *grid, *policy)
    one = ["--lm-weight", str(found["lm_weight"]), "--word-score", str(found["word_score"])]
    again = answer(capsys, "evaluate", recogniser / "model", valid, "--lm", arpa, *one, *policy)
    assert again["wer"] == found["wer"]
    # Words dearly wished for are said, and they are those of the lexicon.
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("AB\n")
    audio = str(corpus / "audio/u0.flac")
    words = ["--lm", arpa, "--lexicon", str(lexicon), "--word-score", "30"]
    assert main(["predict", str(recogniser / "model"), audio, *words]) == 0
    assert set(capsys.readouterr().out.split("\t")[1].split()) == {"AB"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lm-weight", "2"], "--lm FILE"),
        (["--lexicon", "x"], "--lm FILE"),
        (["--lm", "nowhere.arpa"], "no such file"),
        (["--beam", "0"], "expected at least 1"),
    ],
)
def test_language_model_options_that_do_nothing(
    corpus: Path,
    recogniser: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
):
    assert main(["evaluate", str(recogniser / "model"), str(corpus / "valid.jsonl"), *words]) == 2
    assert told in capsys.readouterr().err


def test_evaluate_speaker(
    corpus: Path, speaker_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trials = tmp_path / "trials"
    trials.write_text("1 u8 u8\n0 u8 u9\n")
    words = ["evaluate", speaker_model / "model", corpus / "valid.jsonl", "--trials", trials]
    found = answer(capsys, *words, "--out", tmp_path)
    assert found["chance"] == 0.5
    assert found["eer"] == 0.0
    assert json.loads((tmp_path / "speaker.json").read_text())["accuracy"] == found["accuracy"]


def test_predict_text_and_speaker(
    corpus: Path, recogniser: Path, speaker_model: Path, capsys: pytest.CaptureFixture[str]
):
    audio = str(corpus / "audio/u0.flac")
    assert main(["predict", str(recogniser / "model"), audio]) == 0
    assert capsys.readouterr().out.startswith(f"{audio}\t")
    assert main(["predict", str(speaker_model / "model"), audio, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["speaker"] in {"s0", "s1"}


def test_predict_tells_files_of_two_folders_apart(
    corpus: Path, recogniser: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "x.flac").write_bytes((corpus / "audio/u0.flac").read_bytes())
    words = ["predict", recogniser / "model", *folders]
    assert main([str(w) for w in words]) == 0
    names = [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [str(folder / "x.flac") for folder in folders]


def test_predict_goes_on_after_a_bad_file(
    corpus: Path, recogniser: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["predict", str(recogniser / "model"), "no.wav", str(corpus / "audio/u0.flac")]
    assert main(words) == 3
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "no.wav" in captured.err


def test_code_of_another_package_is_run_only_when_asked_for(
    corpus: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, valid = tmp_path / "model", str(corpus / "valid.jsonl")
    shutil.copytree(pretrained / "model", model)
    config = json.loads((model / "config.json").read_text())
    config["speechssl"]["objective"]["name"] = "speechssl.objectives.wav2vec2:Wav2Vec2"
    (model / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(model), valid]) == 1
    assert "--plugins" in capsys.readouterr().err
    assert main(["evaluate", str(model), valid, "--plugins"]) == 0
    assert main(["extract", str(model), valid, str(tmp_path / "out"), "--plugins"]) == 0
    words = ["--train", str(corpus / "train.jsonl"), "--test", valid, "--baseline", "none"]
    assert main(["probe", str(model), *words, "--plugins"]) == 0
    assert main(["predict", str(model), valid, "--plugins"]) == 2  # it names neither


def test_freezing_what_nobody_trained_is_told(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = (corpus / "tiny.yaml").read_text().splitlines(keepends=True)
    settings = tmp_path / "ctc.yaml"
    settings.write_text("".join(line for line in lines if not line.startswith("objective")))
    words = ["--config", settings, "--data.train", corpus / "train.jsonl"]
    words += ["--objective.name", "ctc", "--objective.channel_mask.prob", "0"]
    for number, (freeze, told) in enumerate((("true", True), ("false", False))):
        out = ["--objective.freeze_features", freeze, "--run.out", tmp_path / f"run{number}"]
        assert main(["train", *map(str, words + out)]) == 0
        assert ("stay random" in capsys.readouterr().out) == told


def test_every_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto") == "cuda:3"


def test_predict_needs_a_head(corpus: Path, pretrained: Path):
    assert main(["predict", str(pretrained / "model"), str(corpus / "audio/u0.flac")]) == 2


def test_ctm_lines():
    word = {"text": "hi", "start_sec": 0.5, "end_sec": 0.75, "confidence": 0.9}
    assert formatted({"id": "a b.wav", "words": [word]}, "ctm") == [
        "a_b.wav 1 0.500 0.250 hi 0.900"
    ]


def test_probe_compares_with_baselines(
    corpus: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "probe.json"
    words = ["probe", pretrained / "model", "--train", corpus / "train.jsonl", "--out", out]
    found = answer(capsys, *words, "--test", corpus / "valid.jsonl", "--layer", "all")
    systems = [row["system"] for row in found["results"]]
    assert systems == [str(pretrained / "model")] * 3 + ["random (tiny)"] * 3 + ["logmel"]
    assert json.loads(out.read_text()) == found
    assert found["classifier"] == "logistic"
    closed = answer(capsys, *words, "--test", corpus / "valid.jsonl", "--classifier", "lda")
    assert [row["system"] for row in closed["results"]] == sorted(set(systems), key=systems.index)
    assert closed["classifier"] == "lda"


def test_probe_scores_every_test_manifest_by_itself(
    corpus: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["probe", pretrained / "model", "--train", corpus / "train.jsonl", "--baseline", "none"]
    tests = [str(corpus / f"{name}.jsonl") for name in ("train", "valid")]
    words += ["--classifier", "weighted", "--pool", "mean"]
    both = answer(capsys, *words, "--test", *tests)["results"]
    assert [row["test"] for row in both] == tests
    for row in both:
        assert [row] == answer(capsys, *words, "--test", row["test"])["results"]
    assert both[0]["layer"] == "all"
    assert main([*map(str, words), "--test", *tests]) == 0
    shown = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[1] for line in shown] == tests


def test_probe_draws_random_weights_once_for_models_of_one_shape(
    corpus: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    twin = tmp_path / "twin"
    shutil.copytree(pretrained / "model", twin)
    config = json.loads((twin / "config.json").read_text())
    config["speechssl"]["backbone"]["feature_grad_mult"] = 0.5
    (twin / "config.json").write_text(json.dumps(config))
    words = ["--train", corpus / "train.jsonl", "--test", corpus / "valid.jsonl"]
    found = answer(capsys, "probe", pretrained / "model", twin, *words, "--baseline", "random")
    assert [row["system"] for row in found["results"]][2:] == ["random (tiny)"]


def test_probe_leaves_groups_out(
    corpus: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["probe", pretrained / "model", "--train", corpus / "train.jsonl"]
    found = answer(capsys, *words, "--label", "digit", "--group", "speaker", "--baseline", "none")
    assert set(found["results"][0]["per_group"]) == {"s0", "s1"}
    assert main([*map(str, words), "--label", "nothing", "--group", "speaker"]) == 3
    assert main([*map(str, words)]) == 2


def test_probe_chooses_settings_across_groups(
    corpus: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["probe", pretrained / "model", "--train", corpus / "train.jsonl", "--label", "digit"]
    words += ["--test", corpus / "valid.jsonl", "--group", "speaker", "--baseline", "none"]
    found = answer(capsys, *words)
    assert found["group"] == "speaker"
    assert "per_group" not in found["results"][0]
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    for row in rows:  # one group only: nothing to leave out
        row |= {"speaker": "one", "audio": str(corpus / row["audio"])}
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words[3] = tmp_path / "one.jsonl"
    assert main([str(w) for w in words]) == 3
    assert "8 training utterances of 2 classes in 1 groups are too few" in capsys.readouterr().err


def test_wilson_interval():
    low, high = wilson(0.5, 100)  # R: prop.test(50, 100, correct = FALSE)
    assert (low, high) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_show_everything(corpus: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]):
    manifest = str(corpus / "train.jsonl")
    config = ["show", corpus / "tiny.yaml", "--data.train", manifest]
    assert main([str(w) for w in config]) == 0
    out = capsys.readouterr().out
    assert 'train: ["' in out
    assert "# command line" in out
    assert "tiny.yaml:" in out
    assert answer(capsys, *config)["hop"] == "320 samples, 20 ms"
    assert answer(capsys, "show", pretrained)["updates"] == 2
    assert answer(capsys, "show", pretrained / "model")["objective"] == "wav2vec2"
    assert answer(capsys, "show", pretrained / "ckpt" / "step_00000002")["files"] >= 2
    assert answer(capsys, "show", manifest)["utterances"] == 8


def test_report_draws_curves(pretrained: Path, recogniser: Path, tmp_path: Path):
    out = tmp_path / "curves.png"
    runs = [str(pretrained), str(recogniser)]
    assert main(["report", *runs, "--out", str(out), "--smooth", "3"]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert main(["report", str(tmp_path)]) == 3


def test_the_next_command_that_pretraining_prints_is_accepted(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from tests.unit.cli.conftest import train

    small = "--backbone.preset=wav2vec --backbone.dim=8 --backbone.conv_dims=[8,8,8,8,8,8,8]"
    small += " --backbone.layers=2 --backbone.context_kernels=[2,3] --objective.name=wav2vec"
    small += " --objective.num_negatives=2 --objective.num_steps=2 --optim.steps=1"
    small += " --data.max_sec=1 --data.batch_sec=4 --data.update_sec=4 --data.workers=0"
    train(corpus, tmp_path / "ssl", *small.split())
    (line,) = (s for s in capsys.readouterr().out.splitlines() if "--init.from" in s)
    words = line.replace("TRANSCRIBED.jsonl", str(corpus / "train.jsonl")).split()[1:]
    assert main([*words, "--optim.steps=1", "--run.out", str(tmp_path / "asr")]) == 0
    out = capsys.readouterr().out
    assert "characters in fewer than 3" not in out
