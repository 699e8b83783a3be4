"""The command: verbs, exit codes, one-line errors."""

from __future__ import annotations

import pytest

from speechssl.cli import manifest
from speechssl.cli.main import VERBS, main, without_local_rank
from speechssl.errors import DataError


def test_help_and_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("speechssl ")


def test_no_verb_is_a_usage_error():
    assert main([]) == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trian"], 2, "speechssl: error: unknown verb 'trian'; did you mean 'train'?"),
        (["train", "--optim.lrr", "1"], 2, "speechssl train: error: command line: unknown key"),
        (["train", "--config", "no.yaml"], 2, "no.yaml: cannot read it"),
        (["manifest", "no.jsonl"], 3, "speechssl manifest: error: manifest no.jsonl"),
        (["manifest", "folder"], 2, "no OUT given"),
        (["show", "nowhere"], 2, "does not exist"),
    ],
)
def test_errors_are_one_line_and_a_code(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPEECHSSL_DEBUG", "1")
    with pytest.raises(DataError):
        main(["manifest", "no.jsonl"])


def test_other_ranks_are_silent_about_the_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "--optim.lrr", "1"]) == 2
    assert capsys.readouterr().err == ""
    assert main(["manifest", "no.jsonl"]) == 3
    assert "error: rank 1: manifest" in capsys.readouterr().err


def test_programming_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def broken(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(manifest, "main", broken)
    with pytest.raises(ZeroDivisionError):
        main(["manifest"])


def test_the_launchers_rank_is_dropped():
    words = ["--local_rank=1", "train", "--local-rank", "0", "--run.out", "x"]
    assert without_local_rank(words) == ["train", "--run.out", "x"]
