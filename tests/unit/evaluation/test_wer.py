"""Word error rates against a slow reference, and the files of a report."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from speechssl.errors import DataError
from speechssl.evaluation.wer import Counts, base_counts, bootstrap_interval, score

REFS = {"u1": "THE CAT SAT", "u2": "ON THE MAT", "u3": "", "u4": "AGAIN"}
HYPS = {"u2": "ON A MAT", "u1": "THE CAT CAT SAT", "u3": "UH", "u4": ""}


def slow_distance(ref, hyp):
    table = np.zeros((len(ref) + 1, len(hyp) + 1), int)
    table[:, 0], table[0] = range(len(ref) + 1), range(len(hyp) + 1)
    for i, r in enumerate(ref, 1):
        for j, h in enumerate(hyp, 1):
            steps = table[i - 1, j - 1] + (r != h), table[i - 1, j] + 1, table[i, j - 1] + 1
            table[i, j] = min(steps)
    return int(table[-1, -1])


def random_texts(seed, count=40):
    rng = np.random.default_rng(seed)
    words = np.array(["A", "BE", "SEE", "DEED"])
    return {
        f"u{i}": " ".join(words[rng.integers(4, size=rng.integers(1, 9))]) for i in range(count)
    }


def test_counts_of_a_small_set():
    report = score(REFS, HYPS)
    assert report.words == Counts(1, 1, 2, 7)
    assert report.wer == pytest.approx(4 / 7)
    assert (report.empty_refs, report.empty_ref_insertions, report.empty_hyps) == (1, 1, 1)
    assert report.sentence_errors == 4
    assert report.interval[0] <= report.wer <= report.interval[1]


def test_totals_equal_a_slow_reference():
    refs, hyps = random_texts(0), random_texts(1)
    report = score(refs, hyps)
    words = sum(slow_distance(refs[i].split(), hyps[i].split()) for i in refs)
    chars = sum(slow_distance(refs[i], hyps[i]) for i in refs)
    assert (report.words.errors, report.chars.errors) == (words, chars)
    assert report.words.ref == sum(len(t.split()) for t in refs.values())
    for i in refs:
        pair = refs[i].split(), hyps[i].split()
        assert base_counts(*pair).errors == slow_distance(*pair)
        assert base_counts(*pair).ref + base_counts(*pair).insertions - base_counts(
            *pair
        ).deletions == len(pair[1])


def test_equal_texts_have_no_errors():
    report = score(random_texts(0), random_texts(0))
    assert (report.wer, report.cer, report.interval) == (0.0, 0.0, (0.0, 0.0))


def test_policy_is_applied_to_both_sides_and_named():
    refs, hyps = {"a": "Hello, world"}, {"a": "HELLO WORLD"}
    assert score(refs, hyps).wer == 1.0
    report = score(refs, hyps, policy="plain")
    assert (report.wer, report.policy) == (0.0, "plain")


def test_speakers_add_up():
    report = score(REFS, HYPS, {"u1": "b", "u2": "a", "u3": "a", "u4": "b"})
    assert list(report.per_speaker) == ["a", "b"]
    assert sum(report.per_speaker.values(), Counts()) == report.words


def test_missing_hypotheses_and_wordless_references_are_refused():
    with pytest.raises(DataError, match=r"1 references without a hypothesis \['u4'\]"):
        score(REFS, {i: t for i, t in HYPS.items() if i != "u4"})
    with pytest.raises(DataError, match="1 hypotheses without a reference"):
        score(REFS, HYPS | {"u9": "X"})
    with pytest.raises(DataError, match="none of 1 references has a word"):
        score({"u": ""}, {"u": "X"})


def test_interval_repeats_and_narrows_with_more_speech():
    rng = np.random.default_rng(0)
    errors, words = rng.binomial(20, 0.2, size=400), np.full(400, 20)
    small = bootstrap_interval(errors[:25], words[:25])
    large = bootstrap_interval(errors, words)
    assert small == bootstrap_interval(errors[:25], words[:25])
    assert large[1] - large[0] < small[1] - small[0]
    assert large[0] < 0.2 < large[1]
    # For independent utterances the interval is 1.96 standard errors each way.
    error = 1.96 * (errors / 20).std() / np.sqrt(400)
    assert (large[1] - large[0]) / 2 == pytest.approx(error, rel=0.15)


def test_report_files(tmp_path):
    report = score(REFS, HYPS, {"u1": "ann", "u2": "bob"})
    written = report.write(tmp_path / "out")
    assert {p.name for p in written} == {"wer.txt", "wer.json", "ref.trn", "hyp.trn", "hyp.txt"}
    folder = tmp_path / "out"
    told = json.loads((folder / "wer.json").read_text())
    assert told["wer"] == pytest.approx(4 / 7)
    assert told["words"] == {"substitutions": 1, "deletions": 1, "insertions": 2, "ref": 7}
    assert told["per_speaker"]["bob"]["wer"] == pytest.approx(1 / 3)
    assert (folder / "hyp.txt").read_text().splitlines() == [
        "u1 THE CAT CAT SAT",
        "u2 ON A MAT",
        "u3 UH",
        "u4",
    ]
    assert (folder / "ref.trn").read_text().splitlines()[2:] == ["(u3)", "AGAIN (u4)"]
    listing = (folder / "wer.txt").read_text()
    assert "WER 57.14%" in listing
    assert "REF: ON THE MAT" in listing
    assert "u2  sub 1 del 0 ins 0 words 3" in listing


@pytest.mark.skipif(shutil.which("sclite") is None, reason="sclite is not installed")
def test_sclite_reads_our_files(tmp_path):
    report = score(random_texts(0), random_texts(1))
    report.write(tmp_path)
    command = ["sclite", "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn", "-i", "rm", "-o", "sum"]
    subprocess.run([*command, "stdout"], cwd=tmp_path, check=True, capture_output=True)
