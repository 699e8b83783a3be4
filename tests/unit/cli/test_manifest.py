"""`speechssl manifest`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechssl.cli.main import main


def test_scans_a_folder_and_counts_what_cannot_be_used(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for i in range(2):
        (tmp_path / f"u{i}.flac").write_bytes((corpus / f"audio/u{i}.flac").read_bytes())
    (tmp_path / "empty.wav").write_bytes(b"")
    out = tmp_path / "out" / "all.jsonl"
    assert main(["manifest", str(tmp_path), str(out)]) == 3  # a third is too much
    assert not out.exists()
    capsys.readouterr()
    assert main(["manifest", str(tmp_path), str(out), "--max-bad-fraction", "0.5", "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert (facts["utterances"], facts["skipped"]) == (2, 1)
    assert "empty.wav" in captured.err
    assert Path(facts["skipped_list"]).exists()


def test_describes_a_manifest(corpus: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["manifest", str(corpus / "train.jsonl")]) == 0
    assert "utterances" in capsys.readouterr().out


def test_full_check_of_a_manifest_decodes_and_other_options_are_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    whole = (corpus / rows[0]["audio"]).read_bytes()
    for row in rows:
        row["audio"] = str(corpus / row["audio"])
    rows[0]["audio"] = str(tmp_path / "cut.flac")
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    manifest = tmp_path / "all.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["manifest", str(manifest)]) == 0
    assert main(["manifest", str(manifest), "--full-check"]) == 3
    assert "cut.flac" in capsys.readouterr().err
    words = ["--full-check", "--jobs", "2", "--max-bad-fraction", "0.5", "--json"]
    assert main(["manifest", str(manifest), *words]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1
    assert main(["manifest", str(manifest), "--kind", "nemo"]) == 2
    assert main(["manifest", str(manifest), "--jobs", "2"]) == 2
