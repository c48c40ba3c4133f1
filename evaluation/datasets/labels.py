"""Texts with a label, whatever the labels are: they are known when the whole file has been read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...errors import DataError
from ..fields import field, kind_of
from ..items import Labelled
from ..prompts import Turn
from . import classification
from .base import LABELS, Dataset, Record
from .classification import prompt_for

# The first whose fields a record has.
TEXT_FIELDS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
# A label like 20240726 is no index of a label, and would make a list of as many names.
MOST_LABELS = 10_000


def read(record: Any, where: str, default_id: str = "", *, labels: Sequence[str] = ()) -> Labelled:
    """A record with one text or two."""
    found = next((names for names in TEXT_FIELDS if isinstance(record, dict) and set(names) <= record.keys()), None)
    if found is None and isinstance(record, dict):
        names = ", ".join(" + ".join(names) for names in TEXT_FIELDS)
        raise DataError(f"{where}: there is no text next to the label; the fields may be {names}")
    return classification.read(record, where, default_id, fields=found or (), labels=labels)


def with_labels(names: Sequence[str]) -> Dataset:
    """The schema for labels that are known."""
    words = tuple(name.replace("_", " ") for name in names)
    single = prompt_for("{text}", _question(words), words)
    pair = prompt_for("Text 1: {text}\nText 2: {text2}", _question(words), words)

    def prompt(item: Labelled, style: str) -> Turn:
        return (pair if len(item.texts) > 1 else single)(item, style)

    labels = tuple(names)
    return replace(
        ANY_LABELS, labels=labels, words=words, read=partial(read, labels=labels), prompt=prompt, prepare=None
    )


def _question(words: Sequence[str]) -> str:
    # Names may have braces, which mark the texts of an item.
    listed = ", ".join(words).replace("{", "{{").replace("}", "}}")
    return f"Which label fits: {listed}?"


def _prepare(dataset: Dataset, records: Iterable[Record], called: str) -> tuple[Dataset, Iterable[Record]]:
    everything = list(records)
    return with_labels(_labels_of(everything, called)), everything


def _labels_of(records: Sequence[Record], called: str) -> tuple[str, ...]:
    """The names in alphabetical order, or for numbers 0 to the greatest."""
    names: dict[str, None] = {}
    greatest, numbered = 0, ""
    for where, record in records:
        place = f"{called}: {where}"
        label = field(record, "label", place)
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise DataError(f"{place}: field 'label' must be a whole number or a name, not {kind_of(label)}")
        if isinstance(label, str):
            if not label.strip():
                raise DataError(f"{place}: field 'label' is blank")
            names[label] = None
        elif label >= MOST_LABELS:
            raise DataError(f"{place}: field 'label' is {label}; an index of a label is less than {MOST_LABELS}")
        else:
            greatest, numbered = max(greatest, label), where
        if names and numbered:
            raise DataError(f"{place}: field 'label' is {label!r}; a file has numbers or names, not both")
    return tuple(sorted(names)) if names else tuple(str(index) for index in range(greatest + 1))


ANY_LABELS = Dataset(
    name="labels",
    summary="any file of texts or pairs of texts with a label",
    task=LABELS,
    metric="accuracy",
    read=read,
    prompt=prompt_for("{text}", "Which label fits?", ()),
    fields=frozenset({"label"}),
    prepare=_prepare,
)
