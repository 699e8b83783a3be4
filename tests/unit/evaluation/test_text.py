"""Text policies by example."""

import pytest

from speechssl.errors import ConfigError
from speechssl.evaluation.text import text_policy


@pytest.mark.parametrize(
    ("policy", "text", "expected"),
    [
        ("raw", "  Don't\t stop,  \n now! ", "Don't stop, now!"),
        ("upper", "Don’t stop, now!", "DON'T STOP, NOW!"),
        ("plain", "Don’t stop, now!", "DON'T STOP NOW"),
        ("plain", "well-known – and/or", "WELL KNOWN AND OR"),
        ("plain", "' dogs' '", "DOGS'"),
        ("plain", "it´s $5 (five)", "IT'S 5 FIVE"),
        ("plain", "cafe\u0301", "CAFÉ"),
        ("plain", "...", ""),
    ],
)
def test_policies(policy, text, expected):
    assert text_policy(policy).apply(text) == expected


@pytest.mark.parametrize("policy", ["raw", "upper", "plain"])
def test_policies_change_nothing_twice(policy):
    apply = text_policy(policy).apply
    for text in ("a-b 'c' ﬁne—Ça´va?", "straße", ""):
        assert apply(apply(text)) == apply(text)


def test_unknown_policy_is_named():
    with pytest.raises(ConfigError, match="expected one of raw, upper, plain"):
        text_policy("whisper")
