"""What models are asked: items of five kinds, and the set of them that one evaluation uses."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import require_at_least_one

if TYPE_CHECKING:
    from .datasets.base import Dataset
    from .sound import Sound


@dataclass(frozen=True)
class Question:
    """One question about one passage; no gold answers means that the passage does not answer it (SQuAD v2).

    context: "" where the question stands alone. passage: without distractors, where some were put around it; else "".
    """

    id: str
    context: str
    question: str
    answers: tuple[str, ...]
    title: str = ""
    kind: str = ""
    passage: str = ""

    @property
    def group(self) -> str:
        """Questions on one passage are no independent evidence; without a passage each stands alone."""
        return self.passage or self.context or self.id

    def content(self) -> list[Any]:
        """What is asked and scored, without the id; titles and kinds do not count."""
        return [self.context, self.question, list(self.answers)]

    def fields(self) -> dict[str, str]:
        """What a prompt template may name."""
        return {"context": self.context, "question": self.question, "title": self.title}


@dataclass(frozen=True)
class Choice:
    """A question with several possible answers; `label` is the index of the right one. context: "" or a passage."""

    id: str
    question: str
    choices: tuple[str, ...]
    label: int
    context: str = ""
    kind: str = ""

    @property
    def group(self) -> str:
        """Questions on one passage are no independent evidence; without a passage each stands alone."""
        return self.context or self.id

    def content(self) -> list[Any]:
        """What is asked and scored, without the id."""
        return [self.context, self.question, list(self.choices), self.label]

    def fields(self) -> dict[str, str]:
        """What a prompt template may name; choices are written as lines "A. ..."."""
        lines = "\n".join(f"{letter(index)}. {choice}" for index, choice in enumerate(self.choices))
        return {"context": self.context, "question": self.question, "choices": lines}


@dataclass(frozen=True)
class Labelled:
    """One text or a pair of texts with the index of its label; pairs may share their first text, as in MNLI."""

    id: str
    texts: tuple[str, ...]
    label: int
    kind: str = ""

    @property
    def group(self) -> str:
        """Pairs with the same first text are no independent evidence; a single text stands alone."""
        return self.texts[0] if len(self.texts) > 1 else self.id

    def content(self) -> list[Any]:
        """What is asked and scored, without the id."""
        return [list(self.texts), self.label]

    def fields(self) -> dict[str, str]:
        """What a prompt template may name."""
        return {"text": self.texts[0], "text2": self.texts[1] if len(self.texts) > 1 else ""}


@dataclass(frozen=True)
class Text:
    """A piece of plain text; pieces of one document share its name."""

    id: str
    text: str
    document: str = ""
    kind: str = ""

    @property
    def group(self) -> str:
        """Pieces of one of several documents are no independent evidence."""
        return self.document or self.id

    def content(self) -> list[Any]:
        """What is read."""
        return [self.text]

    def fields(self) -> dict[str, str]:
        """Texts are read as they are."""
        return {}


@dataclass(frozen=True)
class Speech:
    """Recorded speech and the words that are said; recordings of one speaker share its name."""

    id: str
    sound: Sound
    text: str
    speaker: str = ""
    kind: str = ""

    @property
    def group(self) -> str:
        """Recordings of one of several speakers are no independent evidence."""
        return self.speaker or self.id

    def content(self) -> list[Any]:
        """What is heard and scored."""
        return [self.sound.sha256, self.text]

    def fields(self) -> dict[str, str]:
        """Sound is heard as it is."""
        return {}


Item = Question | Choice | Labelled | Text | Speech


def letter(index: int) -> str:
    """0 -> "A"; after "Z" come numbers."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


@dataclass(frozen=True)
class ItemSet:
    """The items of one data set split, with a fingerprint of all of them, sampled or not.

    `name` is what the person typed and `split` is "" for a file. dataset: the schema with its prompt and metric; it
    belongs to the set as a whole, so a sample keeps it.
    """

    name: str
    split: str
    items: tuple[Any, ...]
    fingerprint: str
    dataset: Dataset

    def __len__(self) -> int:
        return len(self.items)

    def describe(self) -> dict[str, Any]:
        """Which items, for JSON."""
        return {
            "name": self.name,
            "split": self.split,
            "schema": self.dataset.name,
            "fingerprint": self.fingerprint,
            "items": len(self),
        }

    def sample(self, limit: int | None, seed: int) -> ItemSet:
        """A random subset of `limit` items in their original order; everything if there are no more than that.

        A larger limit with the same seed contains the smaller one. Raises UsageError for a limit below 1.
        """
        require_at_least_one(limit=limit)
        if limit is None or limit >= len(self.items):
            return self
        order = random.Random(seed).sample(range(len(self.items)), len(self.items))
        return replace(self, items=tuple(self.items[index] for index in sorted(order[:limit])))


def make_item_set(name: str, split: str, items: Iterable[Item], dataset: Dataset) -> ItemSet:
    """An item set with its fingerprint worked out."""
    everything = tuple(items)
    return ItemSet(name, split, everything, fingerprint(everything), dataset)


def fingerprint(items: Iterable[Item]) -> str:
    """SHA-256, in hex, over the ids of items and what is asked and scored, in order.

    The same items have the same fingerprint in every file format.
    """
    digest = hashlib.sha256()
    for item in items:
        digest.update(_encoded([item.id, *item.content()]) + b"\n")
    return digest.hexdigest()


def content_hash(item: Item) -> str:
    """16 hex digits that tell an item by what it asks, whatever its id and whatever distractors surround it."""
    if isinstance(item, Question):
        item = replace(item, context=item.passage or item.context, passage="")
    return hashlib.sha256(_encoded(item.content())).hexdigest()[:16]


def _encoded(content: list[Any]) -> bytes:
    return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode("ascii")
