"""N-gram estimation against a slow reference and KenLM's reading of the file."""

import random

import pytest

from speechssl.downstream.ngram import END, UNKNOWN, estimate
from speechssl.errors import ConfigError, DataError
from tests.reference.kneser_ney_ref import SlowKneserNey

TEXT = [
    "the cat sat on the mat",
    "the dog sat on the cat",
    "a dog saw the cat on a mat",
    "the mat",
    "sat the dog",
    "a cat saw a dog",
]


def drawn_text(seed: int, size: int = 40) -> list[str]:
    """Sentences of words with the falling frequencies of speech, so that discounts exist."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(14)]
    weights = [1 / (i + 1) for i in range(14)]
    return [" ".join(rng.choices(words, weights, k=rng.randint(1, 6))) for _ in range(size)]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("text", [TEXT, drawn_text(1), drawn_text(2)])
def test_equals_slow_reference(text: list[str], order: int):
    model = estimate(text, order)
    slow = SlowKneserNey([line.split() for line in text], order)
    contexts = [[], ["<s>"], ["<s>", text[0].split()[0]], text[0].split()[:2], ["never", "the"]]
    for context in contexts:
        known = [w if w in slow.vocabulary or w == "<s>" else UNKNOWN for w in context]
        for word in slow.vocabulary[:: 1 if order < 3 else 3]:
            history = tuple(known[-(order - 1) :] if order > 1 else ())
            expected = slow.probability(word, history)
            assert 10 ** model.log10(word, context) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one(order: int):
    model = estimate(drawn_text(3), order)
    for context in ([], ["<s>"], ["w0"], ["w1", "w0"], ["w13", "w12", "w11"], ["never"]):
        total = sum(10 ** model.log10(w, context) for w in [*model.words, END, UNKNOWN])
        assert total == pytest.approx(1.0, rel=1e-9)


def test_perplexity_counts_ends_and_leaves_unknown_words_out():
    model = estimate(["a b", "a b", "b a"], 2)
    found, unknown = model.perplexity(["a zebra"])
    logs = [model.log10("a", ["<s>"]), model.log10(END, ["a", "zebra"])]
    assert found == pytest.approx(10 ** (-sum(logs) / 2))
    assert unknown == 0.5
    # What a model was made of surprises it less than other orders of the same words.
    assert model.perplexity(["a b"])[0] < model.perplexity(["b b"])[0]


def test_kenlm_reads_the_file_and_agrees(tmp_path):
    decoder = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    dictionary = pytest.importorskip("flashlight.lib.text.dictionary")
    model = estimate(drawn_text(4, 80), 3)
    model.write(tmp_path / "lm.arpa")
    words = dictionary.Dictionary()
    for word in [*model.words, UNKNOWN]:
        words.add_entry(word)
    kenlm = decoder.KenLM(str(tmp_path / "lm.arpa"), words)
    for sentence in [*drawn_text(5, 20), "w0 never w1"]:
        state, total, context = kenlm.start(False), 0.0, ["<s>"]
        for word in sentence.split():
            known = word if word in model.words else UNKNOWN
            state, score = kenlm.score(state, words.get_index(known))
            total += score
            expected = model.log10(word, context)
            assert score == pytest.approx(expected, abs=1e-5)
            context.append(word)
        assert kenlm.finish(state)[1] == pytest.approx(model.log10(END, context), abs=1e-5)


def test_words_and_marks(tmp_path):
    model = estimate(["b a", "c"], 2)
    assert model.words == ["a", "b", "c"]
    model.write(tmp_path / "lm.arpa")
    lines = (tmp_path / "lm.arpa").read_text().splitlines()
    assert lines[0] == "\\data\\"
    assert lines[-1] == "\\end\\"
    assert "ngram 1=6" in lines  # a b c <s> </s> <unk>
    assert "-99\t<s>" in "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "order", "error", "told"),
    [
        ([], 2, DataError, "no words"),
        (["", "  "], 2, DataError, "no words"),
        (["a </s> b"], 2, DataError, "</s>"),
        (["a"], 0, ConfigError, "order"),
    ],
)
def test_bad_input(text, order, error, told):
    with pytest.raises(error, match=told):
        estimate(text, order)
