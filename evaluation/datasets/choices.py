"""What the multiple-choice data sets share: how the right choice is named in a record, and prompts with a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import DataError
from ..fields import encodable, field, items_of, kind_of, text_of
from ..items import letter
from ..prompts import UNIFIEDQA, Turn

LEAD = "Answer:"
HIDDEN = "the right answer is hidden, as it is in the test splits of some data sets; use another split"


def texts_in(values: Any, name: str, where: str) -> tuple[str, ...]:
    """At least two strings that are not blank. DataError for anything else."""
    if not isinstance(values, list):
        raise DataError(f"{where}: field '{name}' must be a list of strings, not {kind_of(values)}")
    if len(values) < 2:
        raise DataError(f"{where}: field '{name}' must have at least two entries, not {len(values)}")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{where}: {name}[{index}] must be a string, not {kind_of(value)}")
        if not value.strip():
            raise DataError(f"{where}: {name}[{index}] is blank")
        encodable(value, f"{where}: {name}[{index}]")
    return tuple(values)


def keyed_choices(record: Any, where: str) -> tuple[tuple[str, ...], int]:
    """The choices of a record and the index of the one that `answerKey` names.

    Choices are {"text": [...], "label": [...]} or a plain list, whose labels are A, B, C and so on.
    """
    choices = field(record, "choices", where)
    if isinstance(choices, dict):
        texts = texts_in(field(choices, "text", f"{where}: choices"), "choices.text", where)
        labels = [str(label) for label in items_of(choices, "label", f"{where}: choices")]
        if len(labels) != len(texts):
            raise DataError(f"{where}: field 'choices' has {len(texts)} texts and {len(labels)} labels")
    else:
        texts = texts_in(choices, "choices", where)
        labels = [letter(index) for index in range(len(texts))]
    key = text_of(record, "answerKey", where).strip()
    if not key:
        raise DataError(f"{where}: field 'answerKey' is blank: {HIDDEN}")
    # Some labels are letters where the key is a digit, and the other way round.
    positions = [letter(index) for index in range(len(texts))], [str(index + 1) for index in range(len(texts))]
    for names in (labels, *positions):
        if key in names:
            return texts, names.index(key)
    raise DataError(f"{where}: field 'answerKey' is {key!r}; the choices are {', '.join(labels)}")


def listed(question: str, choices: Sequence[str], style: str, context: str = "") -> Turn:
    """A question with all of its choices, for the encoder-decoder models that were trained on such lists."""
    if style == UNIFIEDQA:
        return Turn(r" \n ".join([question, lettered(choices), *([context] if context else [])]).lower())
    lines = "\n".join(f"- {choice}" for choice in choices)
    return Turn("\n\n".join([*([context] if context else []), question, f"OPTIONS:\n{lines}"]))


def lettered(choices: Sequence[str]) -> str:
    """Choices as UnifiedQA was trained on them: "(a) one (b) two"."""
    return " ".join(f"({letter(index).lower()}) {choice}" for index, choice in enumerate(choices))
