"""Characters to indices and back."""

import json
from pathlib import Path

import pytest

from speechssl.data.tokens import Characters
from speechssl.errors import DataError


def test_vocabulary_of_texts() -> None:
    characters = Characters.from_texts(["HI  YOU", "IT'S"])
    assert characters.vocab == ("<pad>", "|", "'", "H", "I", "O", "S", "T", "U", "Y")
    assert characters.blank == 0
    assert Characters.from_texts(["A"], unknown=True).vocab == ("<pad>", "<unk>", "|", "A")


def test_encode_decode() -> None:
    characters = Characters.from_texts(["HELLO YOU"])
    ids = characters.encode("  HELLO\t\n YOU ")
    assert characters.decode(ids) == "HELLO YOU"
    assert 0 not in ids
    assert ids.count(1) == 1
    assert characters.encode("") == []
    assert characters.decode([0, *ids, 0, 0]) == "HELLO YOU"


def test_decode_collapses_nothing() -> None:
    characters = Characters(["<pad>", "|", "A"])
    assert characters.decode([2, 2, 0, 2]) == "AAA"


def test_case_is_kept() -> None:
    characters = Characters.from_texts(["aA"])
    assert characters.decode(characters.encode("aA")) == "aA"


def test_unknown_characters_are_named() -> None:
    characters = Characters.from_texts(["AB"])
    with pytest.raises(DataError, match=r"'7' \(U\+0037\) x2, 'É' \(U\+00C9\) x1"):
        characters.encode("A7 7É")
    assert characters.unknown("A7 7É") == {"7": 2, "É": 1}


def test_unknown_token_only_when_declared() -> None:
    characters = Characters.from_texts(["AB"], unknown=True)
    assert characters.encode("AX") == [3, 1]
    assert characters.decode([3, 1]) == "A<unk>"
    with pytest.raises(DataError, match=r"'\|'"):
        characters.encode("A|B")


@pytest.mark.parametrize(
    "vocab", [[], ["|", "<pad>"], ["<pad>", "A"], ["<pad>", "|", "A", "A"], ["<pad>", "|", "AB"]]
)
def test_bad_vocabulary(vocab: list[str]) -> None:
    with pytest.raises(DataError, match="vocabulary"):
        Characters(vocab)


def test_no_characters_and_literal_bar() -> None:
    with pytest.raises(DataError, match="no characters"):
        Characters.from_texts([" "])
    with pytest.raises(DataError, match="word bar"):
        Characters.from_texts(["A|B"])


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    characters = Characters.from_texts(["É B"])
    characters.save(path)
    assert json.loads(path.read_text(encoding="utf-8"))["<pad>"] == 0
    assert Characters.load(path).vocab == characters.vocab


def test_a_hugging_face_vocabulary_loads(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text('{"E": 5, "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}')
    characters = Characters.load(path)
    assert characters.decode([1, 5, 4, 5, 2]) == "E E"
    assert characters.encode("EX") == [5, 3]


@pytest.mark.parametrize(
    "content",
    ["[1]", '{"<pad>": 0, "|": 2}', "{", '{"<pad>": 0, "|": "x"}', '{"<pad>": "0", "|": "1"}'],
)
def test_bad_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(DataError, match=r"vocab\.json"):
        Characters.load(tmp_path / "vocab.json")
