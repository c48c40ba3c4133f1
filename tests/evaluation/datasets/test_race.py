"""RACE's records and prompts."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets.race import RACE
from hf_sparsify.evaluation.items import Choice
from hf_sparsify.evaluation.prompts import CHAT, COMPLETION, T5, UNIFIEDQA, Turn

RECORD = {
    "example_id": "high1.txt",
    "article": "Ann is in the attic.",
    "question": "Ann is _ .",
    "options": ["up", "Down", ""],
    "answer": "B",
}
ITEM = Choice("7", "Ann is _ .", ("up", "Down", ""), 1, context="Ann is in the attic.")


def test_records_are_read_and_an_articles_questions_have_ids_of_their_own() -> None:
    assert RACE.read(RECORD, "row 8", "7") == ITEM


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"answer": "D"}, "field 'answer' is 'D'; the options are A, B, C"),
        ({"options": ["up"]}, "field 'options' must have at least two entries, not 1"),
        ({"options": ["up", None]}, r"options\[1\] must be a string, not null"),
        ({"article": " "}, "field 'article' is blank"),
    ],
)
def test_what_is_no_record(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"^row 8: {reason}"):
        RACE.read({**RECORD, **changed}, "row 8", "7")


def test_prompts() -> None:
    assert RACE.prompt(ITEM, COMPLETION) == Turn("Ann is in the attic.\nQuestion: Ann is _ .", "Answer:")
    assert RACE.prompt(ITEM, CHAT) == Turn("Passage: Ann is in the attic.\n\nQuestion: Ann is _ .", "Answer:")
    assert RACE.prompt(ITEM, UNIFIEDQA).text == r"ann is _ . \n (a) up (b) down (c)  \n ann is in the attic."
    assert RACE.prompt(ITEM, T5).text == "Ann is in the attic.\n\nAnn is _ .\n\nOPTIONS:\n- up\n- Down\n- "
