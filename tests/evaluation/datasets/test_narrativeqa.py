"""NarrativeQA's records and prompts."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets.narrativeqa import INSTRUCTION, NARRATIVEQA
from hf_sparsify.evaluation.items import Question
from hf_sparsify.evaluation.prompts import CHAT, COMPLETION, T5, UNIFIEDQA, Turn

SUMMARY = {"text": "Ann hides.", "title": "The Attic", "tokens": ["Ann", "hides", "."]}
RECORD: dict[str, Any] = {
    "document": {"id": "d", "summary": SUMMARY, "text": "A very long book."},
    "question": {"text": "What does Ann do?", "tokens": []},
    "answers": [{"text": "She hides", "tokens": []}, {"text": "hide", "tokens": []}],
}
ITEM = Question("7", "Ann hides.", "What does Ann do?", ("She hides", "hide"), title="The Attic")


def test_the_summary_is_the_passage() -> None:
    assert NARRATIVEQA.read(RECORD, "row 8", "7") == ITEM


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"document": "A book."}, "document: expected an object, not a string"),
        ({"document": {"text": "A book."}}, "document: field 'summary' is missing"),
        ({"question": {}}, "question: field 'text' is missing"),
        ({"answers": [{"tokens": []}]}, r"answers\[0\]: field 'text' is missing"),
    ],
)
def test_what_is_no_record(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"^row 8: {reason}"):
        NARRATIVEQA.read({**RECORD, **changed}, "row 8", "7")


def test_prompts() -> None:
    asked = "Ann hides.\nQuestion: What does Ann do?"
    assert NARRATIVEQA.prompt(ITEM, COMPLETION) == Turn(f"Summary: {asked}", "Answer:")
    assert NARRATIVEQA.prompt(ITEM, CHAT).text.startswith(f"{INSTRUCTION}\n\nSummary: Ann hides.")
    assert NARRATIVEQA.prompt(ITEM, UNIFIEDQA) == Turn(r"what does ann do? \n ann hides.")
    assert NARRATIVEQA.prompt(ITEM, T5) == Turn("question: What does Ann do? context: Ann hides.")
