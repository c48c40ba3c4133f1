"""Questions in UnifiedQA's encoding: what is read of them, and what models are told."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets.unifiedqa import UNIFIEDQA_FILE
from hf_sparsify.evaluation.items import Question
from hf_sparsify.evaluation.prompts import CHAT, COMPLETION, STYLES, T5, UNIFIEDQA, Turn

BARE = r"Which shines? \n (A) a star (B) a stone"
READ = r"Where is Ann? \n (Ann_and_Ben) Ann is in the attic.  Ben is not."
READ_AND_CHOOSE = r"Who is up? \n (A) Ann (B) Ben \n Ann is in the attic."
GLUED = r"Who is up?\nAnn is in the attic."


def question(encoded: str, *answers: str) -> Question:
    found: Question = UNIFIEDQA_FILE.read({"input": encoded, "answers": list(answers or ("Ann",))}, "line 1", "0")
    return found


@pytest.mark.parametrize(
    ("encoded", "passage"),
    [
        ("Who is up?", ""),
        (BARE, ""),
        (BARE.lower(), ""),
        (READ, "(Ann_and_Ben) Ann is in the attic.  Ben is not."),
        (READ_AND_CHOOSE, "Ann is in the attic."),
        (GLUED, "Ann is in the attic."),
    ],
)
def test_the_passage_is_found_and_nothing_is_changed(encoded: str, passage: str) -> None:
    item = question(encoded)
    assert item.context == passage
    assert UNIFIEDQA_FILE.prompt(item, UNIFIEDQA) == Turn(encoded)


def test_other_models_are_told_the_same_in_their_own_form() -> None:
    def told(encoded: str, style: str) -> str:
        return UNIFIEDQA_FILE.prompt(question(encoded), style).text

    assert told(BARE, T5) == "question: Which shines? (A) a star (B) a stone"
    assert told(READ_AND_CHOOSE, T5) == "question: Who is up? (A) Ann (B) Ben context: Ann is in the attic."
    assert told(READ_AND_CHOOSE, CHAT) == "Who is up?\n(A) Ann (B) Ben\nAnn is in the attic."
    assert told(GLUED, COMPLETION) == "Who is up?\nAnn is in the attic."
    assert all("\\n" not in told(READ_AND_CHOOSE, style) for style in STYLES if style != UNIFIEDQA)


def test_questions_on_one_passage_are_a_group_and_others_stand_alone() -> None:
    first, second = question(READ), question(READ.replace("Where", "How"))
    assert first.group == second.group == first.context
    alone = UNIFIEDQA_FILE.read({"id": "q7", "input": BARE, "answers": ["a star"]}, "line 1", "0")
    assert alone.group == "q7"


def test_answers_come_once_each() -> None:
    assert question(BARE, "a star", "star", "a star").answers == ("a star", "star")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"answers": ["a"]}, "field 'input' is missing"),
        ({"input": " ", "answers": ["a"]}, "field 'input' is blank"),
        ({"input": BARE, "answers": "a star"}, "field 'answers' must be a list, not a string"),
        ({"input": BARE, "answers": [3]}, r"answers\[0\] must be a string, not a number"),
        ({"input": BARE, "answers": []}, "a question without an answer has '<No Answer>'"),
    ],
)
def test_what_is_no_question(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"^line 1.*{reason}"):
        UNIFIEDQA_FILE.read(record, "line 1", "0")
