"""CTC decoding over the words of a lexicon, with an n-gram language model.

The search is Flashlight's (Pratap et al. 2018, arXiv 1812.07625; Collobert et al. 2020, section 3),
which maximises ln P(spelling | audio) + lm_weight ln P(words) + word_score times their number. Its
own weights are for log10 P(words), as fairseq and torchaudio take them: 2.303 times these.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from speechssl.audio.backend import lexicon_decoder
from speechssl.downstream.decode import BLANK, Hypothesis
from speechssl.downstream.ngram import BEGIN, END, UNKNOWN
from speechssl.errors import ConfigError, DataError

_BAR = "|"


@dataclass(frozen=True)
class LanguageModel:
    """A language model file and how far to trust it.

    `path` is an ARPA file or a KenLM binary; `words` the words that may be answered (default: those
    of the ARPA file); `word_score` is added for every word, in nats: more of it, more words.
    """

    path: str
    words: tuple[str, ...] = ()
    lm_weight: float = 1.0
    word_score: float = 0.0

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise ConfigError(f"language model {self.path}: no such file; make one: speechssl lm")
        if not self.words:
            object.__setattr__(self, "words", arpa_words(self.path))


class LexiconDecoder:
    """Decodes with a language model; called like `decode.decode`, but answers lexicon words only.

    Words that hold a character the model has no class for cannot be answered and are left out.
    Raises ConfigError when the model has no word bar, when none of the words can be spelt, or when
    the package flashlight-text is missing; DataError for a file that KenLM cannot read.
    """

    def __init__(self, lm: LanguageModel, classes: Sequence[str], beam: int = 100) -> None:
        if _BAR not in classes:
            raise ConfigError(
                f"a lexicon needs words, but the model has no class '{_BAR}' to part them"
            )
        if beam < 1:
            raise ConfigError(f"beam: got {beam}, expected at least 1")
        self.ids = {name: i for i, name in enumerate(classes) if i != BLANK}
        spelt = [w for w in lm.words if all(c in self.ids for c in w)]
        if not spelt:
            raise ConfigError(
                f"language model {lm.path}: none of its {len(lm.words)} words can be spelt with "
                f"the model's characters ({' '.join(list(self.ids)[:40])}); mind the case"
            )
        self.left_out = len(lm.words) - len(spelt)
        with tempfile.TemporaryDirectory() as folder:
            lexicon = Path(folder) / "lexicon.txt"
            lines = [f"{word} {' '.join(word)} {_BAR}\n" for word in spelt]
            lexicon.write_text("".join(lines), encoding="utf-8")
            try:
                self._search = lexicon_decoder(
                    str(lexicon),
                    classes,
                    lm.path,
                    blank=classes[BLANK],
                    bar=_BAR,
                    beam=beam,
                    lm_weight=lm.lm_weight * math.log(10),
                    word_score=lm.word_score,
                )
            except ImportError as error:
                raise ConfigError(
                    "decoding with a language model needs flashlight-text: pip install "
                    "'speechssl[asr]'"
                ) from error
            except RuntimeError as error:
                raise DataError(f"language model {lm.path}: cannot be read: {error}") from error

    def __call__(self, log_probs: Tensor, lens: Tensor) -> list[Hypothesis]:
        """One hypothesis per utterance of log_probs (B, T, V), lens (B,) frames.

        The score is the sum that the search maximises.
        """
        # The lexicon spells every word with its bar, but nothing teaches a model to write one after
        # the last word: one more frame in which the bar is certain.
        last = torch.full((1, log_probs.shape[-1]), -1e4)
        last[0, self.ids[_BAR]] = 0.0
        found = []
        for row, size in zip(log_probs.detach().float().cpu(), lens.tolist(), strict=True):
            best = self._search(torch.cat([row[:size], last])[None])[0]
            words = best[0].words if best else []
            spelling = _BAR.join(words)
            ids = tuple(self.ids[c] for c in spelling)
            found.append(Hypothesis(ids, float(best[0].score) if best else float("-inf")))
        return found


def arpa_words(path: str | Path) -> tuple[str, ...]:
    """The words among the unigrams of an ARPA file, without its marks. Raises DataError."""
    words: list[str] = []
    inside = False
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for line in lines:
                if inside and line.startswith("\\"):
                    break
                fields = line.split()
                if inside and len(fields) >= 2 and fields[1] not in (BEGIN, END, UNKNOWN):
                    words.append(fields[1])
                inside = inside or fields == ["\\1-grams:"]
    except UnicodeDecodeError:
        inside = False
    if not inside:
        raise DataError(
            f"{path}: not an ARPA file (no \\1-grams: section); with a KenLM binary, give the "
            "words too: --lexicon FILE"
        )
    return tuple(words)


def lexicon_words(path: str | Path) -> tuple[str, ...]:
    """The first field of every line of `path`, once each. Raises DataError when there is none.

    What else stands on a line, such as a pronunciation, does not matter: characters spell.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"lexicon {path}: {error}") from error
    words = tuple(dict.fromkeys(fields[0] for line in lines if (fields := line.split())))
    if not words:
        raise DataError(f"lexicon {path}: no words in it; expected one first on each line")
    return words
