"""Questions in UnifiedQA's encoding, where choices and passage stand in one text.

Khashabi, Min, Khot, Sabharwal, Tafjord, Clark, Hajishirzi: UnifiedQA: Crossing Format Boundaries With a Single QA
System, 2020 (arXiv 2005.00700). The parts of a text are the question, the choices "(a) ... (b) ..." and the passage;
between them stands a backslash and an n, which is no line break. All answers are written in words.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import DataError
from ..fields import encodable, id_of, items_of, kind_of, optional_text, text_of
from ..items import Question
from ..prompts import T5, UNIFIEDQA, Turn
from .base import ENCODED, Dataset
from .choices import LEAD

SEPARATOR = re.compile(r"\s*\\n\s*")
LAST_PART = re.compile(r"(.*\\n\s*)(.*)", re.DOTALL)
CHOICES_PART = re.compile(r"\(a\) .*\(b\) ", re.IGNORECASE | re.DOTALL)
NO_ANSWER = "<No Answer>"  # what the model was trained to write where a passage has no answer


def read(record: Any, where: str, default_id: str = "") -> Question:
    """A record with the encoded `input` and its right `answers`, one or several strings."""
    answers = [_answer(answer, f"{where}: answers[{index}]") for index, answer in enumerate(_answers(record, where))]
    encoded = text_of(record, "input", where, blank=False)
    return question_of(
        id_of(record, ("id",), default_id, where), encoded, answers, optional_text(record, "kind", where)
    )


def _answers(record: Any, where: str) -> list[Any]:
    answers = items_of(record, "answers", where)
    if not answers:
        raise DataError(f"{where}: field 'answers' is empty; a question without an answer has {NO_ANSWER!r}")
    return answers


def _answer(answer: Any, where: str) -> str:
    if not isinstance(answer, str):
        raise DataError(f"{where} must be a string, not {kind_of(answer)}")
    return encodable(answer, where)


def question_of(name: str, encoded: str, answers: list[str], kind: str) -> Question:
    """A question whose passage is the last part, unless that lists the choices. Nothing of the text is changed."""
    asked, passage = encoded, ""
    parts = LAST_PART.fullmatch(encoded)
    if parts and not CHOICES_PART.match(parts[2]):
        asked, passage = parts[1], parts[2]
    return Question(name, passage, asked, tuple(dict.fromkeys(answers)), kind=kind)


def prompt(question: Question, style: str) -> Turn:
    """The text as it is encoded; models of other kinds get the same words in their own form."""
    if style == UNIFIEDQA:
        return Turn(question.question + question.context)
    if style == T5:
        passage = f" context: {question.context}" if question.context else ""
        return Turn(f"question: {SEPARATOR.sub(' ', question.question).strip()}{passage}")
    return Turn(SEPARATOR.sub("\n", question.question + question.context), LEAD)


UNIFIEDQA_FILE = Dataset(
    name="unifiedqa",
    summary="any file in UnifiedQA's encoding: its TSV files, or records with an input and answers",
    task=ENCODED,
    metric="exact_match",
    read=read,
    prompt=prompt,
)
