"""Decoding with a language model against enumeration of every sentence."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from speechssl.downstream.ngram import END, NGram, estimate
from speechssl.errors import ConfigError, DataError
from speechssl.extract.lexicon import (
    LanguageModel,
    LexiconDecoder,
    arpa_words,
    lexicon_words,
)

pytest.importorskip("flashlight.lib.text")
CLASSES = ("<pad>", "|", "A", "B", "C")
WORDS = ("A", "AB", "BA", "CC", "CAB")


@pytest.fixture(scope="module")
def model() -> NGram:
    return estimate(["A AB", "BA A", "CC AB", "CAB", "A BA", "A AB CC"], 2)


@pytest.fixture(scope="module")
def arpa(model: NGram, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    model.write(path)
    return str(path)


def enumerate_sentences(log_probs, model, lm_weight, word_score):
    """Sentence -> ln P(its spellings | audio) + weighted language model + word scores.

    Adds up every path; bars at the ends and doubled ones mean nothing.
    """
    found = {}
    frames = len(log_probs)
    for path in product(range(len(CLASSES)), repeat=frames):
        text = "".join(CLASSES[v] for i, v in enumerate(path) if v and (i == 0 or path[i - 1] != v))
        words = tuple(word for word in text.split("|") if word)
        if all(word in WORDS for word in words):
            p = np.exp(sum(log_probs[t, v] for t, v in enumerate(path)))
            found[words] = found.get(words, 0.0) + p
    for words, p in found.items():
        line = ["<s>", *words, END]
        lm = sum(model.log10(line[i], line[:i]) for i in range(1, len(line)))
        found[words] = np.log(p) + lm_weight * lm * np.log(10) + word_score * len(words)
    return found


@pytest.mark.parametrize(("lm_weight", "word_score"), [(0.0, 0.0), (1.0, 0.0), (1.5, 3.0)])
@pytest.mark.parametrize("seed", range(4))
def test_finds_the_best_sentence(model, arpa, seed, lm_weight, word_score):
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(scale=2.0, size=(6, len(CLASSES))), dtype=torch.float32)
    log_probs = logits.log_softmax(-1)
    lm = LanguageModel(arpa, lm_weight=lm_weight, word_score=word_score)
    found = LexiconDecoder(lm, CLASSES, beam=2000)(log_probs[None], torch.tensor([6]))[0]
    words = tuple(w for w in "".join(CLASSES[i] for i in found.ids).split("|") if w)
    truth = enumerate_sentences(log_probs.numpy(), model, lm_weight, word_score)
    assert truth[words] == max(truth.values())
    # Paths that end in a blank and in a bar stay apart in the search: it may lose some of the sum.
    assert truth[words] - 0.7 < found.score < truth[words] + 1e-3


def test_weights_change_the_answer(arpa):
    """One frame of doubt: the sound prefers CC, the language model A."""
    log_probs = torch.full((5, len(CLASSES)), -9.0)
    for frame, name in enumerate(["C", "<pad>", "C", "|", "A"]):
        log_probs[frame, CLASSES.index(name)] = -0.1
    log_probs[0, CLASSES.index("A")] = log_probs[2, CLASSES.index("<pad>")] = -1.1
    lens = torch.tensor([5])

    def answer(**weights: float) -> str:
        decoder = LexiconDecoder(LanguageModel(arpa, **weights), CLASSES)
        return "".join(CLASSES[i] for i in decoder(log_probs[None], lens)[0].ids)

    assert answer(lm_weight=0.0) == "CC|A"
    assert answer(lm_weight=4.0) != "CC|A"
    assert answer(lm_weight=0.0, word_score=-20.0) == ""


def test_padding_is_not_read_and_no_frames_are_no_words(arpa):
    decoder = LexiconDecoder(LanguageModel(arpa), CLASSES)
    rng = np.random.default_rng(5)
    log_probs = torch.tensor(rng.normal(size=(2, 9, len(CLASSES)))).log_softmax(-1)
    alone = decoder(log_probs[:1, :6], torch.tensor([6]))
    assert decoder(log_probs, torch.tensor([6, 9]))[0] == alone[0]
    assert decoder(log_probs, torch.tensor([0, 0]))[0].ids == ()


def test_words(arpa, tmp_path: Path):
    assert sorted(arpa_words(arpa)) == sorted(WORDS)
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("A  a b c\nCC\n\nA other\n")
    assert lexicon_words(lexicon) == ("A", "CC")
    decoder = LexiconDecoder(LanguageModel(arpa, ("A", "zebra")), CLASSES)
    assert decoder.left_out == 1


def test_bad_input(arpa, tmp_path: Path):
    broken = tmp_path / "lm.bin"
    broken.write_bytes(b"mmap lm http://kheafield.com/code\x00\xff\xfe")
    with pytest.raises(DataError, match="--lexicon"):
        arpa_words(broken)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="no words"):
        lexicon_words(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no such file"):
        LanguageModel(str(tmp_path / "nowhere.arpa"))
    with pytest.raises(ConfigError, match="mind the case"):
        LexiconDecoder(LanguageModel(arpa, ("zebra",)), CLASSES)
    with pytest.raises(ConfigError, match=r"\|"):
        LexiconDecoder(LanguageModel(arpa), ("<pad>", "A", "B"))
    with pytest.raises(ConfigError, match="beam"):
        LexiconDecoder(LanguageModel(arpa), CLASSES, beam=0)
    broken.write_bytes(b"\\data\\\nngram 1=2\n\n\\1-grams:\nnonsense\n")
    with pytest.raises(DataError, match="cannot be read"):
        LexiconDecoder(LanguageModel(str(broken), ("A",)), CLASSES)
