"""Other data sets in UnifiedQA's encoding, held against texts written by hand."""

from __future__ import annotations

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.datasets.unifiedqa import UNIFIEDQA_FILE
from hf_sparsify.evaluation.encoding import encode
from hf_sparsify.evaluation.items import Choice, Item, Labelled, Question, Text, make_item_set
from hf_sparsify.evaluation.prompts import UNIFIEDQA

STAR = Choice("c", "Which shines?", ("a Stone", "a Star"), 1)
TRUE = Choice("b", "is ann up", ("no", "yes"), 1, context="Ann is in the attic.")
ASKED = Question("q", "Ann is in the attic.", "Where is Ann?", ("the attic", "attic"))
UNANSWERED = Question("u", "Ann is in the attic.", "Where is Ben?", ())
FILM = Labelled("l", ("A fine film.",), 1)


def encoded(name: str, item: Item) -> tuple[str, tuple[str, ...]]:
    found = encode(make_item_set(name, "validation", [item], DATASETS[name]))
    assert (found.name, found.split, found.dataset) == (name, "validation", UNIFIEDQA_FILE)
    return UNIFIEDQA_FILE.prompt(found.items[0], UNIFIEDQA).text, found.items[0].answers


@pytest.mark.parametrize(
    ("name", "item", "text", "answers"),
    [
        ("arc_easy", STAR, r"which shines? \n (a) a stone (b) a star", ("a Star",)),
        ("openbookqa", STAR, r"which shines? \n (a) a stone (b) a star", ("a Star",)),
        ("boolq", TRUE, r"is ann up? \n ann is in the attic.", ("yes",)),
        ("squad", ASKED, r"where is ann? \n ann is in the attic.", ("the attic", "attic")),
        ("squad_v2", UNANSWERED, r"where is ben? \n ann is in the attic.", ("<No Answer>",)),
    ],
)
def test_every_kind_of_item(name: str, item: Item, text: str, answers: tuple[str, ...]) -> None:
    assert encoded(name, item) == (text, answers)


def test_labels_are_words() -> None:
    text, answers = encoded("sst2", FILM)
    assert text.endswith(r" \n (a) negative (b) positive \n a fine film.")
    assert answers == ("positive",)


def test_what_is_encoded_stays_as_it_is() -> None:
    once = encode(make_item_set("arc_easy", "", [STAR], DATASETS["arc_easy"]))
    assert encode(once) == once


def test_plain_text_has_no_answer() -> None:
    with pytest.raises(UsageError, match="has no answer"):
        encode(make_item_set("t", "", [Text("t", "Some text.")], DATASETS["text"]))
