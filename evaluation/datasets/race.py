"""RACE: reading comprehension from English exams in China, four choices each."""

from __future__ import annotations

from typing import Any

from ...errors import DataError
from ..fields import encodable, items_of, kind_of, optional_text, text_of
from ..items import Choice, letter
from ..prompts import CHAT, COMPLETION, Turn
from .base import CHOICES, Dataset
from .choices import LEAD, listed


def read(record: Any, where: str, default_id: str = "") -> Choice:
    """A record; its `example_id` names the article, which several questions share."""
    options = _options(record, where)
    letters = [letter(index) for index in range(len(options))]
    answer = text_of(record, "answer", where).strip()
    if answer not in letters:
        raise DataError(f"{where}: field 'answer' is {answer!r}; the options are {', '.join(letters)}")
    return Choice(
        id=default_id,
        question=text_of(record, "question", where, blank=False),
        choices=options,
        label=letters.index(answer),
        context=text_of(record, "article", where, blank=False),
        kind=optional_text(record, "kind", where),
    )


def _options(record: Any, where: str) -> tuple[str, ...]:
    """At least two; they may be blank."""
    options = items_of(record, "options", where)
    if len(options) < 2:
        raise DataError(f"{where}: field 'options' must have at least two entries, not {len(options)}")
    for index, option in enumerate(options):
        if not isinstance(option, str):
            raise DataError(f"{where}: options[{index}] must be a string, not {kind_of(option)}")
        encodable(option, f"{where}: options[{index}]")
    return tuple(options)


def prompt(item: Choice, style: str) -> Turn:
    """Article and question, which may have a gap "_" to fill; decoders do not see the options."""
    if style == COMPLETION:
        return Turn(f"{item.context}\nQuestion: {item.question}", LEAD)
    if style == CHAT:
        return Turn(f"Passage: {item.context}\n\nQuestion: {item.question}", LEAD)
    return listed(item.question, item.choices, style, item.context)


RACE = Dataset(
    name="race",
    summary="English exams: four choices for a question on a passage",
    task=CHOICES,
    metric="accuracy",
    read=read,
    prompt=prompt,
    fields=frozenset({"article", "question", "options", "answer"}),
    hub="ehovy/race",
    config="all",
)
