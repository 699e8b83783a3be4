"""Word and character error rates, with an interval, a table by speaker, and files for sclite."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.atomic import write_text
from speechssl.errors import DataError
from speechssl.evaluation.text import TextPolicy, text_policy


@dataclass(frozen=True, slots=True)
class Counts:
    """Edit operations against `ref` reference units."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    ref: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.ref + other.ref,
        )

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference unit; nan without one."""
        return self.errors / self.ref if self.ref else float("nan")


@dataclass(frozen=True)
class WerReport:
    """Scores of a test set. `refs` and `hyps` are texts by utterance id, after the policy.

    Utterances with an empty reference stay in: their words count as insertions, as in sclite;
    `empty_refs` and `empty_ref_insertions` say how much they weigh.
    """

    words: Counts
    chars: Counts  # spaces between words count as characters
    interval: tuple[float, float]  # 95 % of the word error rate, bootstrap over utterances
    sentence_errors: int
    empty_refs: int
    empty_ref_insertions: int
    empty_hyps: int
    policy: str
    aligner: str  # what split the errors into the three kinds
    refs: Mapping[str, str] = field(repr=False)
    hyps: Mapping[str, str] = field(repr=False)
    per_utterance: Mapping[str, Counts] = field(repr=False)
    per_speaker: Mapping[str, Counts] = field(default_factory=dict)

    @property
    def wer(self) -> float:
        """Word error rate, a fraction."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Character error rate, a fraction."""
        return self.chars.rate

    def to_json(self) -> dict[str, Any]:
        """What wer.json holds: rates as fractions, counts, and how they were made."""
        return {
            "wer": self.wer,
            "wer_ci95": list(self.interval),
            "cer": self.cer,
            "ser": self.sentence_errors / len(self.refs),
            "words": asdict(self.words),
            "chars": asdict(self.chars),
            "utterances": len(self.refs),
            "sentence_errors": self.sentence_errors,
            "empty_refs": self.empty_refs,
            "empty_ref_insertions": self.empty_ref_insertions,
            "empty_hyps": self.empty_hyps,
            "text_policy": self.policy,
            "aligner": self.aligner,
            "per_speaker": {
                name: asdict(counts) | {"wer": counts.rate if counts.ref else None}
                for name, counts in self.per_speaker.items()
            },
        }

    def write(self, folder: str | Path) -> list[Path]:
        """Write wer.txt (alignments), wer.json, ref.trn, hyp.trn (sclite), hyp.txt (Kaldi text)."""
        folder = Path(folder)
        texts = {
            "wer.txt": self.listing(),
            "wer.json": json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n",
            "ref.trn": _trn(self.refs),
            "hyp.trn": _trn(self.hyps),
            "hyp.txt": "".join(f"{i} {text}".rstrip() + "\n" for i, text in self.hyps.items()),
        }
        for name, text in texts.items():
            write_text(folder / name, text)
        return [folder / name for name in texts]

    def summary(self) -> str:
        """The scores in two lines."""
        w, (low, high) = self.words, self.interval
        return (
            f"WER {self.wer:.2%} [{low:.2%}, {high:.2%}] {w.errors}/{w.ref} "
            f"sub {w.substitutions} del {w.deletions} ins {w.insertions} "
            f"(text policy {self.policy}, {self.aligner})\n"
            f"CER {self.cer:.2%} {self.chars.errors}/{self.chars.ref}; sentences with errors "
            f"{self.sentence_errors}/{len(self.refs)}; empty references {self.empty_refs} "
            f"({self.empty_ref_insertions} words inserted), empty hypotheses {self.empty_hyps}\n"
        )

    def listing(self) -> str:
        """Summary, table by speaker, and every utterance aligned under its reference."""
        import jiwer

        blocks = [self.summary()]
        if self.per_speaker:
            width = max(len(name) for name in self.per_speaker)
            rows = sorted(self.per_speaker.items(), key=lambda row: -np.nan_to_num(row[1].rate))
            lines = [f"{'speaker':<{max(width, 7)}}    WER  errors   words"]
            for name, c in rows:
                lines.append(f"{name:<{max(width, 7)}} {c.rate:6.1%} {c.errors:7d} {c.ref:7d}")
            blocks.append("\n".join(lines) + "\n")
        blocks.append(
            "Alignments are jiwer's. Another aligner may tell substitutions from deletions and\n"
            "insertions otherwise; the number of errors is the same.\n"
        )
        for i, ref in self.refs.items():
            counts = self.per_utterance[i]
            pair = jiwer.process_words([ref], [self.hyps[i]])
            shown = jiwer.visualize_alignment(pair, show_measures=False, skip_correct=False)
            aligned = "\n".join(shown.splitlines()[1:]).strip("\n")  # without its own heading
            blocks.append(
                f"{i}  sub {counts.substitutions} del {counts.deletions} "
                f"ins {counts.insertions} words {counts.ref}\n{aligned}\n"
            )
        return "\n".join(blocks)


def score(
    refs: Mapping[str, str],
    hyps: Mapping[str, str],
    speakers: Mapping[str, str] | None = None,
    *,
    policy: TextPolicy | str = "raw",
) -> WerReport:
    """Compare texts by utterance id.

    Raises DataError when the ids differ (a missing hypothesis must not better the score: give it
    as an empty text) or when no reference has a word.
    """
    policy = text_policy(policy) if isinstance(policy, str) else policy
    missing, extra = refs.keys() - hyps.keys(), hyps.keys() - refs.keys()
    if missing or extra:
        raise DataError(
            f"wer: {len(missing)} references without a hypothesis {_some(missing)} and "
            f"{len(extra)} hypotheses without a reference {_some(extra)}; expected the same ids"
        )
    refs = {i: policy.apply(text) for i, text in refs.items()}
    hyps = {i: policy.apply(hyps[i]) for i in refs}
    if not any(refs.values()):
        raise DataError(f"wer: none of {len(refs)} references has a word; is the text field set?")
    each = {i: _counts(ref.split(), hyps[i].split()) for i, ref in refs.items()}
    by_speaker: dict[str, Counts] = {}
    for i, name in sorted((speakers or {}).items(), key=lambda pair: pair[1]):
        if i in each:
            by_speaker[name] = by_speaker.get(name, Counts()) + each[i]
    empty = [i for i, ref in refs.items() if not ref]
    return WerReport(
        words=sum(each.values(), Counts()),
        chars=sum((_counts(list(ref), list(hyps[i])) for i, ref in refs.items()), Counts()),
        interval=bootstrap_interval(
            [c.errors for c in each.values()], [c.ref for c in each.values()]
        ),
        sentence_errors=sum(c.errors > 0 for c in each.values()),
        empty_refs=len(empty),
        empty_ref_insertions=sum(each[i].insertions for i in empty),
        empty_hyps=sum(not text for text in hyps.values()),
        policy=policy.name,
        aligner=_aligner(),
        refs=refs,
        hyps=hyps,
        per_utterance=each,
        per_speaker=by_speaker,
    )


def bootstrap_interval(
    errors: Sequence[int], words: Sequence[int], *, replicates: int = 2000, seed: int = 1
) -> tuple[float, float]:
    """95 % interval of sum(errors) / sum(words) over utterances drawn with replacement.

    Source: Bisani and Ney, ICASSP 2004. Differs: the seed is fixed, so that a report repeats.
    """
    table = np.stack([np.asarray(errors, np.float64), np.asarray(words, np.float64)])  # (2, N)
    size = table.shape[1]
    rng = np.random.Generator(np.random.PCG64(seed))
    rates = []
    for _ in range(replicates):
        wrong, total = table[:, rng.integers(size, size=size)].sum(1)
        if total:  # a draw of nothing but empty references has no rate
            rates.append(wrong / total)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def _aligner() -> str:
    from importlib import metadata

    try:
        return f"kaldialign {metadata.version('kaldialign')}"
    except metadata.PackageNotFoundError:
        return f"jiwer {metadata.version('jiwer')}"


def _counts(ref: list[str], hyp: list[str]) -> Counts:
    # Both give the same number of errors; kaldialign splits them nearly as sclite does.
    try:
        import kaldialign
    except ImportError:
        return base_counts(ref, hyp)
    found = kaldialign.edit_distance(ref, hyp)
    return Counts(int(found["sub"]), int(found["del"]), int(found["ins"]), len(ref))


def base_counts(ref: list[str], hyp: list[str]) -> Counts:
    """Counts of one pair of token sequences by jiwer's own aligner, which is always there."""
    from rapidfuzz.distance import Levenshtein

    ops = [op.tag for op in Levenshtein.editops(ref, hyp)]
    return Counts(ops.count("replace"), ops.count("delete"), ops.count("insert"), len(ref))


def _some(ids: set[str]) -> str:
    return str(sorted(ids)[:3])


def _trn(texts: Mapping[str, str]) -> str:
    # Blanks and brackets would end the id early.
    rows = ((text, re.sub(r"[\s()]", "_", i)) for i, text in texts.items())
    return "".join(f"{text} ({i})\n".lstrip() for text, i in rows)
