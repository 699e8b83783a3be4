"""Every way a manifest line can be wrong is an error that names line and field."""

import json
from pathlib import Path

import pytest

from speechssl.data.manifest import describe, read_manifest, write_manifest
from speechssl.errors import DataError, ManifestError
from speechssl.types import Utterance

GOOD = {"id": "a", "audio": "x/a.flac", "num_samples": 16000, "rate_hz": 16000}


def written(tmp_path: Path, *rows: dict | str | bytes, newline: bytes = b"\n") -> Path:
    path = tmp_path / "m.jsonl"
    lines = [
        r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode()
        for r in rows
    ]
    path.write_bytes(newline.join(lines) + newline)
    return path


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    utterances = [
        Utterance(
            "ü-1", str(tmp_path / "audio" / "a b.flac"), 8000, 16000, 5, "HI\u2028 YOU", "s", "/l#3"
        ),
        Utterance("b", "/elsewhere/b.wav", 100, 8000, extra={"split": "dev", "words": [["A", 0]]}),
    ]
    write_manifest(tmp_path / "m.jsonl", utterances)
    assert read_manifest(tmp_path / "m.jsonl") == utterances
    first, second = map(json.loads, (tmp_path / "m.jsonl").read_bytes().decode().split("\n")[:2])
    assert first["audio"] == "audio/a b.flac"
    assert first["duration"] == 0.5
    assert second["audio"] == "/elsewhere/b.wav"
    assert second["split"] == "dev"


def test_moved_folder_still_reads(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_manifest(
        tmp_path / "one" / "m.jsonl", [Utterance("a", str(tmp_path / "one/a.wav"), 1, 1)]
    )
    (tmp_path / "one").rename(tmp_path / "two")
    assert read_manifest(tmp_path / "two/m.jsonl")[0].audio == str(tmp_path / "two/a.wav")


def test_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", GOOD | {"id": "b"},
        newline=b"\r\n",
    )  # fmt: skip
    assert [u.id for u in read_manifest(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "id is missing"),
        ({"id": "a b"}, "without blanks"),
        ({"id": ""}, "without blanks"),
        ({"id": 7}, "id is 7 .int., expected a string"),
        ({"audio": None}, "audio is missing"),
        ({"audio": ""}, "audio is empty"),
        ({"audio": "a\nb"}, "line breaks"),
        ({"audio": "a\0b"}, "NUL"),
        ({"num_samples": None}, "num_samples is missing"),
        ({"num_samples": 0}, "num_samples is 0, expected > 0"),
        ({"num_samples": -4}, "num_samples is -4"),
        ({"num_samples": 1.5}, "num_samples is 1.5 .float., expected a whole number"),
        ({"num_samples": "16000"}, "expected a whole number"),
        ({"num_samples": True}, "expected a whole number"),
        ({"rate_hz": 0}, "rate_hz is 0"),
        ({"start": -1}, "start is -1, expected >= 0"),
        ({"duration": "1"}, "expected a finite number"),
        ({"duration": 2.0}, "duration is 2.0 s but"),
        ({"text": 5}, "text is 5"),
        ({"text": "A\nB"}, "line breaks"),
        ({"speaker": 12}, "speaker is 12 .int., expected a string"),
    ],
)
def test_bad_field(tmp_path: Path, change: dict, message: str) -> None:
    row = {k: v for k, v in (GOOD | {"id": "z"} | change).items() if v is not None}
    with pytest.raises(ManifestError, match=rf"m\.jsonl line 2.*{message}"):
        read_manifest(written(tmp_path, GOOD, row))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "\xff"}', "byte 9 is not UTF-8"),
        ("{id: 1}", "not JSON"),
        ("[1]", "got list, expected a JSON object"),
        (json.dumps(GOOD)[:-1] + ', "duration": NaN}', "holds NaN"),
        (GOOD, "id is already that of line 1"),
    ],
)
def test_bad_line(tmp_path: Path, line: dict | str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=rf"line 2.*{message}"):
        read_manifest(written(tmp_path, GOOD, line))


def test_no_file_and_no_lines(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="no utterances"):
        read_manifest(written(tmp_path, ""))


def test_roots_bound_where_audio_may_lie(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, GOOD | {"id": "b", "audio": "../../etc/passwd"})
    assert len(read_manifest(path)) == 2
    with pytest.raises(ManifestError, match=r"line 2.*expected below"):
        read_manifest(path, roots=[tmp_path])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    before = path.read_bytes()
    good, bad = Utterance("a", "/a", 1, 1), Utterance("b", "/b", 0, 1)
    with pytest.raises(ManifestError, match="num_samples is 0"):
        write_manifest(path, [good, bad])
    with pytest.raises(DataError, match="comes twice"):
        write_manifest(path, [good, good])
    with pytest.raises(ManifestError, match="id 'c'"):
        write_manifest(path, [Utterance("c", "/c", 1, 1, extra={"x": float("nan")})])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_describe() -> None:
    facts = describe(
        [
            Utterance("a", "/a", 16000, 16000, text="HI YOU", speaker="s"),
            Utterance("b", "/b", 24000, 8000),
        ]
    )
    assert facts["hours"] == pytest.approx(4 / 3600, abs=1e-4)
    assert (facts["utterances"], facts["speakers"], facts["words"]) == (2, 1, 2)
    assert facts["rates_hz"] == {8000: 1, 16000: 1}
    assert facts["seconds"]["max"] == 3.0
    assert describe([])["utterances"] == 0
