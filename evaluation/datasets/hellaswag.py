"""HellaSwag: which of four endings continues a text."""

from __future__ import annotations

import re
from typing import Any

from ...errors import DataError
from ..fields import field, id_of, index_of, optional_text, text_of
from ..items import Choice
from ..prompts import CHAT, COMPLETION, Turn
from .base import CHOICES, Dataset
from .choices import HIDDEN, listed, texts_in

# What is left of WikiHow's layout: "[header]", "[step]", "[substeps]".
MARKER = re.compile(r"\[.*?\]")


def read(record: Any, where: str, default_id: str = "") -> Choice:
    """A record; its label is a digit in a string."""
    endings = texts_in(field(record, "endings", where), "endings", where)
    return Choice(
        id=id_of(record, ("id",), default_id, where),
        question=_context(record, where),
        choices=tuple(clean(ending) or ending for ending in endings),
        label=_label(record, where, len(endings)),
        kind=optional_text(record, "kind", where),
    )


def clean(text: str) -> str:
    """A text without WikiHow's markers; a title ends with a full stop."""
    return MARKER.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()


def _context(record: dict[str, Any], where: str) -> str:
    if "ctx_a" in record:
        # The capitals are lm-evaluation-harness's: with them scores can be compared.
        text = f"{text_of(record, 'ctx_a', where)} {optional_text(record, 'ctx_b', where).capitalize()}"
    else:
        text = text_of(record, "ctx", where, blank=False)
    activity = optional_text(record, "activity_label", where)
    return clean(f"{activity}: {text}" if activity else text)


def _label(record: dict[str, Any], where: str, count: int) -> int:
    label = field(record, "label", where)
    if not isinstance(label, str):
        return index_of(record, "label", where, count)
    if not label.strip():
        raise DataError(f"{where}: field 'label' is blank: {HIDDEN}")
    digits = [str(index) for index in range(count)]
    if label not in digits:
        raise DataError(f"{where}: field 'label' is {label!r}; it must be from 0 to {count - 1}")
    return digits.index(label)


def prompt(item: Choice, style: str) -> Turn:
    """The text to continue."""
    if style == COMPLETION:
        return Turn(item.question)
    if style == CHAT:
        return Turn(f"What happens next?\n\n{item.question}", "Next:")
    return listed("Which of these continues the text?", item.choices, style, context=item.question)


HELLASWAG = Dataset(
    name="hellaswag",
    summary="which of four endings continues a text",
    task=CHOICES,
    metric="accuracy_norm",
    read=read,
    prompt=prompt,
    fields=frozenset({"endings", "label"}),
    hub="Rowan/hellaswag",
)
