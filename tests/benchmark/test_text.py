"""What the model reads while it is timed."""

from __future__ import annotations

import sys

import pytest
from hf_sparsify.benchmark.text import documentation, texts_of, tokens_of
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.items import Item, ItemSet, Question, Text


class Words:
    """A tokenizer that numbers words by their length."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}


def test_short_texts_begin_again() -> None:
    assert tokens_of(Words(), ["a bb", "ccc"], 2, 4).tolist() == [[1, 2, 3, 1], [2, 3, 1, 2]]


def test_long_texts_are_cut_into_pieces_that_lose_no_token() -> None:
    text = "word " * 5000
    assert tokens_of(Words(), [text], 1, 5000).tolist() == [[4] * 5000]


def test_texts_without_a_token() -> None:
    with pytest.raises(DataError, match="--dataset"):
        tokens_of(Words(), [" "], 1, 4)


def test_the_documentation_is_long_enough_and_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens_of(Words(), documentation(), 1, 30000).unique().numel() > 20
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="--dataset"):
        documentation()


def test_every_text_of_a_data_set_once() -> None:
    def set_of(*items: Item) -> ItemSet:
        return ItemSet("name", "validation", items, "", DATASETS["squad"])

    questions = [Question(str(number), "the passage", "who?", ("x",)) for number in range(2)]
    assert texts_of(set_of(*questions)) == ["the passage\nwho?\n"]
    assert texts_of(set_of(Text("1", "one"), Text("2", "two"))) == ["one", "two"]
