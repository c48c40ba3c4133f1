"""BoolQ: questions on a passage, answered with yes or no."""

from __future__ import annotations

from typing import Any

from ...errors import DataError
from ..fields import field, id_of, kind_of, optional_text, text_of
from ..items import Choice
from ..prompts import CHAT, COMPLETION, UNIFIEDQA, Turn
from .base import CHOICES, Dataset
from .choices import LEAD, listed

NO_OR_YES = ("no", "yes")


def read(record: Any, where: str, default_id: str = "") -> Choice:
    """A record; its answer is true or false."""
    answer = field(record, "answer", where)
    if not isinstance(answer, bool):
        raise DataError(f"{where}: field 'answer' must be true or false, not {kind_of(answer)}")
    return Choice(
        id=id_of(record, ("id",), default_id, where),
        question=text_of(record, "question", where, blank=False),
        choices=NO_OR_YES,
        label=int(answer),
        context=text_of(record, "passage", where, blank=False),
        kind=optional_text(record, "kind", where),
    )


def prompt(item: Choice, style: str) -> Turn:
    """Passage and question; the data set's questions have no question mark."""
    question = item.question if item.question.rstrip().endswith("?") else f"{item.question}?"
    if style == COMPLETION:
        return Turn(f"{item.context}\nQuestion: {question}", LEAD)
    if style == CHAT:
        return Turn(f"Passage: {item.context}\n\nQuestion: {question}", LEAD)
    if style == UNIFIEDQA:
        # Its questions of this kind were asked without a list of choices.
        return Turn(rf"{question} \n {item.context}".lower())
    return listed(question, item.choices, style, item.context)


BOOLQ = Dataset(
    name="boolq",
    summary="yes-or-no questions on a passage",
    task=CHOICES,
    metric="accuracy",
    read=read,
    prompt=prompt,
    fields=frozenset({"question", "passage", "answer"}),
    hub="google/boolq",
)
