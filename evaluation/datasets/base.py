"""What a data set is here: how its records are read, what a model is told about each, and how answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..prompts import Turn

# What is done with the items of a data set, and the class that they have (see evaluation.items).
ANSWERS, CHOICES, LABELS, TEXT, SPEECH = "answers", "choices", "labels", "text", "recordings"
ENCODED = "encoded questions"  # choices and passage, if any, are part of the question

Record = tuple[str, Any]  # where it stands in its file, and what stands there


@dataclass(frozen=True)
class Dataset:
    """One data set, or one schema of records.

    read: (record, where, id for a record that has none) -> item; raises DataError that begins with `where`.
    prompt: (item, style) -> what a generating model is told. style: see evaluation.prompts.
    task: ANSWERS, CHOICES, ENCODED, LABELS, SPEECH or TEXT. metric: the key of the metric that decides. fields: what a
    record must have to be taken for one of this schema. hub, config: where it is on the Hub; "" for a schema that is
    none of its own.
    labels: the names of the labels in order; words: what a model that writes says for each.
    version_2: some questions have no answer, and the metric is that of SQuAD v2.
    prepare: (data set, records, what messages call them) -> the same, where all records are needed before one can be
    read: texts are cut into pieces, and the labels of a file are known at its end.
    """

    name: str
    summary: str
    task: str
    metric: str
    read: Callable[[Any, str, str], Any]
    prompt: Callable[[Any, str], Turn]
    fields: frozenset[str] = frozenset()
    hub: str = ""
    config: str | None = None
    validation: str = "validation"
    train: str = "train"
    labels: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    version_2: bool = False
    prepare: Callable[[Dataset, Iterable[Record], str], tuple[Dataset, Iterable[Record]]] | None = None

    def split_name(self, split: str) -> str:
        """The data set's own name of its "train" or "validation" split; another name is its own."""
        return {"train": self.train, "validation": self.validation}.get(split, split)
