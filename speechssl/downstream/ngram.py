"""N-gram word language models: modified Kneser-Ney estimation, ARPA files, perplexity.

Source: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling",
section 3 (interpolated, three discounts an order); what happens at the edges (the unknown word as
one more word of the uniform distribution below the unigrams, discounts of too little text) follows
Heafield et al. 2013, "Scalable modified Kneser-Ney language model estimation".
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.atomic import write_text
from speechssl.errors import ConfigError, DataError

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
#: Discounts of n-grams seen once, twice and more often, where too little text gives none.
FALLBACK = (0.5, 1.0, 1.5)

Gram = tuple[str, ...]


@dataclass(frozen=True)
class NGram:
    """A back-off model: log10 probabilities, and log10 back-off weights of contexts, by n-gram."""

    order: int
    log_probs: dict[Gram, float]
    backoffs: dict[Gram, float]

    @property
    def words(self) -> list[str]:
        """The vocabulary, sorted, without the marks of beginning, end and unknown words."""
        marks = (BEGIN, END, UNKNOWN)
        return sorted(g[0] for g in self.log_probs if len(g) == 1 and g[0] not in marks)

    def log10(self, word: str, context: Sequence[str] = ()) -> float:
        """log10 P(word | the last order - 1 words of `context`); words not known are `<unk>`."""
        known = [w if (w,) in self.log_probs else UNKNOWN for w in (*context, word)]
        gram = tuple(known[-self.order :])
        penalty = 0.0
        while gram not in self.log_probs:
            penalty += self.backoffs.get(gram[:-1], 0.0)
            gram = gram[1:]
        return penalty + self.log_probs[gram]

    def perplexity(self, sentences: Iterable[str]) -> tuple[float, float]:
        """(perplexity of the known words and sentence ends, share of words that are not known)."""
        total, counted, words, unknown = 0.0, 0, 0, 0
        for sentence in sentences:
            line = [BEGIN, *sentence.split(), END]
            for i in range(1, len(line)):
                is_word = line[i] != END
                words += is_word
                if is_word and (line[i],) not in self.log_probs:
                    unknown += 1
                    continue
                total += self.log10(line[i], line[:i])
                counted += 1
        if not counted:
            raise DataError("perplexity: no sentences to score")
        return 10 ** (-total / counted), unknown / max(words, 1)

    def write(self, path: str | Path) -> None:
        """Write an ARPA file, as KenLM, SRILM and Kaldi read it."""
        lines = ["\\data\\"]
        levels = [sorted(g for g in self.log_probs if len(g) == n + 1) for n in range(self.order)]
        lines += [f"ngram {n}={len(grams)}" for n, grams in enumerate(levels, start=1)]
        for n, grams in enumerate(levels, start=1):
            lines += ["", f"\\{n}-grams:"]
            for gram in grams:
                line = f"{self.log_probs[gram]:.7g}\t{' '.join(gram)}"
                if n < self.order:
                    line += f"\t{self.backoffs.get(gram, 0.0):.7g}"
                lines.append(line)
        write_text(Path(path), "\n".join([*lines, "", "\\end\\", ""]))


def estimate(sentences: Iterable[str], order: int = 3) -> NGram:
    """The modified Kneser-Ney model of `sentences` (words between spaces), up to `order` words.

    Raises ConfigError for an order below 1, DataError for no words or for words that are marks.
    """
    if order < 1:
        raise ConfigError(f"order: got {order}, expected at least 1")
    counts = _counts(sentences, order)
    log_probs: dict[Gram, float] = {}
    backoffs: dict[Gram, float] = {}
    lower: dict[Gram, float] = {}
    vocabulary = sum(gram[0] != BEGIN for gram in counts[0]) + 1  # and <unk>
    for level in counts:
        discounts = _discounts(level)
        totals: dict[Gram, int] = defaultdict(int)
        given: dict[Gram, float] = defaultdict(float)  # mass that the discounts set free
        for gram, count in level.items():
            totals[gram[:-1]] += count
            given[gram[:-1]] += _discount(discounts, count)
        probs = {}
        for gram, count in level.items():
            context = gram[:-1]
            below = lower[gram[1:]] if context else 1 / vocabulary
            seen = count - _discount(discounts, count)
            probs[gram] = (seen + given[context] * below) / totals[context]
        for context, mass in given.items():
            if context:
                backoffs[context] = _log10(mass / totals[context])
            else:
                probs[(UNKNOWN,)] = mass / totals[()] / vocabulary
        log_probs |= {gram: _log10(p) for gram, p in probs.items()}
        lower = probs
    log_probs[(BEGIN,)] = -99.0  # nothing predicts it; the customary stand-in for log 0
    return NGram(order, log_probs, backoffs)


def _counts(sentences: Iterable[str], order: int) -> list[dict[Gram, int]]:
    """Counts of the n-grams of each length: how often at the highest, after how many words below.

    Those that begin a sentence have no word before them and keep how often.
    """
    raw = [Counter[Gram]() for _ in range(order)]
    for sentence in sentences:
        words = sentence.split()
        if bad := {BEGIN, END, UNKNOWN}.intersection(words):
            raise DataError(f"sentence '{sentence}' holds the mark {min(bad)}; take it out")
        line = (BEGIN, *words, END) if words else ()
        for n in range(1, order + 1):
            raw[n - 1].update(line[i : i + n] for i in range(len(line) - n + 1))
    raw[0].pop((BEGIN,), None)  # never predicted
    if not raw[0]:
        raise DataError("language model: no words in the text")
    counts: list[dict[Gram, int]] = []
    for n in range(1, order):
        before = Counter(gram[1:] for gram in raw[n])  # each longer n-gram is one word before
        counts.append({g: before.get(g, 0) if g[0] != BEGIN else c for g, c in raw[n - 1].items()})
    return [*counts, dict(raw[-1])]


def _discounts(level: dict[Gram, int]) -> tuple[float, float, float]:
    """Equation 17 of the paper; FALLBACK where a count of counts is zero or leaves its range."""
    seen = Counter(level.values())
    n1, n2, n3, n4 = (seen[i] for i in range(1, 5))
    if not (n1 and n2 and n3):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    in_range = all(0 <= d <= i for i, d in enumerate(found, start=1))
    return found if in_range else FALLBACK


def _discount(discounts: tuple[float, float, float], count: int) -> float:
    return discounts[min(count, 3) - 1] if count else 0.0


def _log10(probability: float) -> float:
    return math.log10(probability) if probability > 0 else -99.0
