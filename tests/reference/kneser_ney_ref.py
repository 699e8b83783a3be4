"""Interpolated modified Kneser-Ney, slowly: every count is made anew by walking through the text.

Written from Chen and Goodman 1999, section 3, and Heafield et al. 2013, section 3, not from the
library.
"""

from __future__ import annotations

from functools import cache


class SlowKneserNey:
    """P(word | context) of `sentences` (lists of words), with n-grams of up to `order` words."""

    def __init__(self, sentences: list[list[str]], order: int) -> None:
        self.lines = [["<s>", *words, "</s>"] for words in sentences]
        self.order = order
        self.vocabulary = sorted({word for line in self.lines for word in line[1:]} | {"<unk>"})

    @cache  # noqa: B019 - a reference lives as long as its test
    def raw(self, gram: tuple[str, ...]) -> int:
        """How often the n-gram stands in the text."""
        size = len(gram)
        return sum(
            tuple(line[i : i + size]) == gram
            for line in self.lines
            for i in range(len(line) - size + 1)
        )

    @cache  # noqa: B019
    def count(self, gram: tuple[str, ...]) -> int:
        """How often at the highest order, else after how many different words."""
        if len(gram) == self.order or gram[0] == "<s>":
            return self.raw(gram)
        return sum(self.raw((word, *gram)) > 0 for word in [*self.vocabulary, "<s>"])

    @cache  # noqa: B019
    def discount(self, size: int, count: int) -> float:
        """What is taken from an n-gram of `size` words with this count."""
        grams = {
            tuple(line[i : i + size]) for line in self.lines for i in range(len(line) - size + 1)
        }
        grams.discard(("<s>",))
        counts = [self.count(gram) for gram in grams]
        n = [0] + [sum(c == i for c in counts) for i in range(1, 5)]
        by_hand = {1: 0.5, 2: 1.0, 3: 1.5}
        if min(n[1:4]) > 0:
            y = n[1] / (n[1] + 2 * n[2])
            computed = {i: i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)}
            if all(0 <= computed[i] <= i for i in computed):
                by_hand = computed
        return by_hand[min(count, 3)] if count else 0.0

    def probability(self, word: str, context: tuple[str, ...]) -> float:
        """P(word | context); equation 22 of Chen and Goodman."""
        below = self.probability(word, context[1:]) if context else 1 / len(self.vocabulary)
        after = {w: self.count((*context, w)) for w in self.vocabulary}
        total = sum(after.values())
        if total == 0:
            return below
        size = len(context) + 1
        seen = after.get(word, 0)
        free = sum(self.discount(size, c) for c in after.values())
        return (seen - self.discount(size, seen) + free * below) / total
