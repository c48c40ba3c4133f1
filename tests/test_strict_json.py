"""JSON of strangers: what programs would read differently is refused in one short sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.strict_json import check_texts, parse_json, shown


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": [1, 2.5, "\xc3\xa9", null]}', {"a": [1, 2.5, "é", None]}),
        (b"\xef\xbb\xbf[]", []),
        ('"text"', "text"),
        (b"1e308", 1e308),
        (str(2**70), 2**70),
    ],
)
def test_ordinary_json(data: bytes | str, value: Any) -> None:
    assert parse_json(data) == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1,}', "double quotes"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"[1e999]", "1e999 is too large a number"),
        (b"9" * 5000, "limit"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice in one object"),
        (b'{"a": 1, "\\u0061": 2}', "'a' is given twice in one object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff\xfe[\x00]\x00", "can't decode"),
        (b'"\xed\xa0\x80"', "can't decode"),
        (b'"\x00"', "control character"),
    ],
)
def test_refused(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        parse_json(data)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["\x00", "a\nb", "\x1b[31mred", "\x9b", "\ud800"])
def test_texts_that_a_terminal_would_act_on(text: str) -> None:
    check_texts({"é ü": ["日本", 1, None, {"a b": "ok"}]})
    for value in (text, {text: 1}, {"a": [1, {"b": text}]}):
        with pytest.raises(DataError, match="control characters or half a surrogate pair") as caught:
            check_texts(value)
        assert str(caught.value).isprintable()


def test_values_are_shown_short() -> None:
    assert shown([1, "a"]) == "[1, 'a']"
    assert len(shown("x" * 10**6)) < 300
