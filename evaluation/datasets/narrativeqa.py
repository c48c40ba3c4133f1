"""NarrativeQA: questions on books and films, here on their summaries, answered freely."""

from __future__ import annotations

from typing import Any

from ..fields import field, optional_text, text_of
from ..items import Question
from ..prompts import CHAT, COMPLETION, Turn
from . import squad
from .base import ANSWERS, Dataset

INSTRUCTION = "Answer the question on the summary in a few words. Reply with the answer only."


def read(record: Any, where: str, default_id: str = "") -> Question:
    """A record with the summary of its document; the document's own text is not read."""
    summary = field(field(record, "document", where), "summary", f"{where}: document")
    asked = field(record, "question", where)
    return Question(
        id=default_id,
        context=text_of(summary, "text", f"{where}: document.summary", blank=False),
        question=text_of(asked, "text", f"{where}: question"),
        answers=squad.answers_of(record, where),
        title=optional_text(summary, "title", f"{where}: document.summary"),
        kind=optional_text(record, "kind", where),
    )


def prompt(question: Question, style: str) -> Turn:
    """Summary and question; the seq2seq styles are SQuAD's."""
    if style == CHAT:
        return Turn(f"{INSTRUCTION}\n\nSummary: {question.context}\n\nQuestion: {question.question}", "The answer is:")
    if style == COMPLETION:
        return Turn(f"Summary: {question.context}\nQuestion: {question.question}", "Answer:")
    return squad.prompt(question, style)


NARRATIVEQA = Dataset(
    name="narrativeqa",
    summary="questions on summaries of books and films, answered freely",
    task=ANSWERS,
    metric="f1",
    read=read,
    prompt=prompt,
    fields=frozenset({"document", "question", "answers"}),
    hub="deepmind/narrativeqa",
)
