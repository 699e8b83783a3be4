"""Characters to class indices and back, for CTC.

Index 0 is `<pad>`, which is also the CTC blank (the Hugging Face convention; fairseq calls it `<s>`
and icefall `<blk>`). `|` stands for the gap between words. Case is kept: text is what it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from speechssl.atomic import write_text
from speechssl.errors import DataError

PAD = "<pad>"
UNKNOWN = "<unk>"
BAR = "|"


class Characters:
    """A vocabulary of single characters. Without `<unk>`, an unknown character is an error."""

    blank = 0

    def __init__(self, vocab: Sequence[str]) -> None:
        """`vocab` lists the tokens by index. Raises DataError when it is no such vocabulary."""
        self.vocab = tuple(vocab)
        if not self.vocab or self.vocab[0] != PAD:
            found = repr(self.vocab[0]) if self.vocab else "nothing"
            raise DataError(f"vocabulary: index 0 is {found}, expected '{PAD}' (the CTC blank)")
        twice = [token for token, count in Counter(self.vocab).items() if count > 1]
        wrong = [t for t in self.vocab if not _special(t) and (len(t) != 1 or t.isspace())]
        if twice or wrong or BAR not in self.vocab:
            raise DataError(
                f"vocabulary: repeated tokens {twice}, tokens that are not one character {wrong}, "
                f"word bar '{BAR}' {'present' if BAR in self.vocab else 'missing'}; "
                "expected unique single characters, '|' and names in angle brackets"
            )
        self._index = {token: index for index, token in enumerate(self.vocab)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, unknown: bool = False) -> Characters:
        """The vocabulary of all characters in `texts`, sorted; `<unk>` only when asked for."""
        found = {character for text in texts for character in text if not character.isspace()}
        if BAR in found:
            raise DataError(f"a transcript holds '{BAR}', which is the word bar; remove it")
        if not found:
            raise DataError("no characters in the transcripts; is 'text' filled in?")
        return cls([PAD, *([UNKNOWN] if unknown else []), BAR, *sorted(found)])

    def __len__(self) -> int:
        return len(self.vocab)

    def unknown(self, text: str) -> Counter[str]:
        """The characters of `text` that have no token of their own, with their counts."""
        return Counter(c for c in text if not c.isspace() and (c == BAR or c not in self._index))

    def encode(self, text: str) -> list[int]:
        """Token indices of `text`; runs of blanks become one word bar, outer blanks vanish.

        Raises DataError naming unknown characters, unless the vocabulary declares `<unk>`. A
        literal `|` in the text is always an error.
        """
        fallback = self._index.get(UNKNOWN)
        strange = self.unknown(text)
        if strange and (fallback is None or BAR in strange):
            listed = ", ".join(f"{c!r} (U+{ord(c):04X}) x{n}" for c, n in strange.most_common())
            raise DataError(
                f"text {text!r}: characters not in the vocabulary: {listed}; expected "
                f"{''.join(t for t in self.vocab if len(t) == 1 and t != BAR)!r}; normalise the "
                "text, or declare <unk>"
            )
        joined = BAR.join(text.split())
        return [self._index[c] if c in self._index else int(fallback or 0) for c in joined]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token indices, one character each: nothing is collapsed.

        `<pad>` and other names in angle brackets vanish, except `<unk>`.
        """
        tokens = (self.vocab[int(index)] for index in ids)
        kept = (t for t in tokens if t == UNKNOWN or not _special(t))
        return " ".join("".join(kept).replace(BAR, " ").split())

    def save(self, path: str | Path) -> None:
        """Write `vocab.json` as Hugging Face reads it: {token: index}."""
        write_text(path, json.dumps(self._index, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Characters:
        """Read `vocab.json`. Raises DataError unless the indices are 0 to V-1."""
        try:
            index = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"vocabulary {path}: cannot be read: {error}") from error
        whole = isinstance(index, dict) and all(type(i) is int for i in index.values())
        if not whole or sorted(index.values()) != list(range(len(index))):
            raise DataError(
                f"vocabulary {path}: expected {{token: index}} with indices 0 to V-1, each once"
            )
        try:
            return cls(sorted(index, key=index.__getitem__))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _special(token: str) -> bool:
    return len(token) > 2 and token[0] == "<" and token[-1] == ">"
