"""Text policies: what is evened out in references and hypotheses before they are compared.

A word error rate means nothing without its policy, so reports name it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from speechssl.errors import ConfigError

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))


@dataclass(frozen=True, slots=True)
class TextPolicy:
    """What `apply` does, in this order; whitespace runs always become one space.

    compose: Unicode NFKC, so that one letter has one spelling, and typewriter apostrophes.
    strip_punctuation: hyphens, dashes and slashes become spaces, and all other punctuation and
    symbols go, but for apostrophes inside or at the edge of a word that has letters or digits.
    upper: upper case.
    """

    name: str
    compose: bool = False
    strip_punctuation: bool = False
    upper: bool = False

    def apply(self, text: str) -> str:
        """The text as it is compared."""
        if self.compose:
            # Apostrophes first: NFKC turns a lone acute accent into a space and a combining mark.
            text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
        if self.strip_punctuation:
            text = re.sub(r"[-‐-―−/\\_]", " ", text)
            text = "".join(c for c in text if c == "'" or unicodedata.category(c)[0] not in "PS")
            text = " ".join(w for w in text.split() if w.strip("'"))
        if self.upper:
            text = text.upper()
        return " ".join(text.split())


#: Name -> policy. `raw` compares as written; `upper` ignores case; `plain` also ignores
#: punctuation. None spells out numbers or expands contractions.
POLICIES: Mapping[str, TextPolicy] = {
    policy.name: policy
    for policy in (
        TextPolicy("raw"),
        TextPolicy("upper", compose=True, upper=True),
        TextPolicy("plain", compose=True, strip_punctuation=True, upper=True),
    )
}


def text_policy(name: str) -> TextPolicy:
    """The policy of that name. Raises ConfigError for an unknown one."""
    if name not in POLICIES:
        raise ConfigError(f"text policy: got '{name}', expected one of {', '.join(POLICIES)}")
    return POLICIES[name]
