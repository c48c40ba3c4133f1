"""Answered examples that stand before what is asked."""

from __future__ import annotations

import random

from ..errors import UsageError
from .datasets.base import TEXT, Dataset
from .items import Choice, Item, ItemSet, Labelled, Question, content_hash


def draw_shots(items: ItemSet, count: int, seed: int, avoid: ItemSet) -> tuple[Item, ...]:
    """`count` examples from a training split, none of which asks what an item of `avoid` asks.

    A larger count with the same seed begins with the smaller one. Raises UsageError if there are too few, or if the
    data set has nothing to answer.
    """
    if count == 0:
        return ()
    if count < 0:
        raise UsageError(f"--shots must be at least 0, not {count}")
    if items.dataset.task == TEXT:
        raise UsageError(f"--shots {count}: data set {items.name} is plain text, of which there are no examples")
    if (items.dataset.task, items.dataset.labels) != (avoid.dataset.task, avoid.dataset.labels):
        raise UsageError(
            f"--shots {count}: {items.name} is of another kind than {avoid.name}, or has other labels: draw the "
            "examples from data in the same schema"
        )
    used = {content_hash(item) for item in avoid.items}
    shots: list[Item] = []
    for index in random.Random(seed).sample(range(len(items)), len(items)):
        item = items.items[index]
        if isinstance(item, Question) and not item.answers:
            continue
        asked = content_hash(item)
        if asked not in used:
            used.add(asked)
            shots.append(item)
        if len(shots) == count:
            return tuple(shots)
    called = f"{items.name} ({items.split})" if items.split else items.name
    raise UsageError(f"--shots {count}: data set {called} has only {len(shots)} examples that are not asked themselves")


def shot_answer(item: Item, dataset: Dataset) -> str:
    """The text of the right answer: the first gold answer, the right choice, or the word for the label.

    Raises UsageError for an item without one.
    """
    if isinstance(item, Question) and item.answers:
        return item.answers[0]
    if isinstance(item, Choice):
        return item.choices[item.label]
    if isinstance(item, Labelled):
        return (dataset.words or dataset.labels)[item.label]
    raise UsageError(f"--shots: item {item.id} of data set {dataset.name} has no answer to show")
