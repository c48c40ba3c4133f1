"""Longer contexts: other passages around the one that a question is about."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from ..errors import UsageError
from .items import ItemSet, Question


def with_distractors(items: ItemSet, count: int, seed: int, pool: ItemSet) -> ItemSet:
    """The same questions, each with its passage somewhere among `count` others from `pool`.

    The passage is at a random place, so where the answer stands tells nothing. The others hold none of the gold
    answers. What a question gets depends on the seed, its id and the pool alone, not on the questions beside it.
    Raises UsageError if count is negative, the items are no questions, or the pool has too few passages.
    """
    if count == 0:
        return items
    if count < 0:
        raise UsageError(f"--distractors must be at least 0, not {count}")
    for asked in (items, pool):
        if not all(isinstance(item, Question) and item.context for item in asked.items):
            raise UsageError(
                f"--distractors {count}: data set {asked.name} has no questions that are answered with words of a "
                "passage; leave the option out"
            )
    passages = list(dict.fromkeys(question.group for question in pool.items))
    lowered = [passage.casefold() for passage in passages]
    return replace(
        items, items=tuple(_surrounded(question, count, seed, passages, lowered, pool.name) for question in items.items)
    )


def _surrounded(
    question: Question, count: int, seed: int, passages: Sequence[str], lowered: Sequence[str], pool: str
) -> Question:
    generator = random.Random(f"{seed}:{question.id}")
    position = generator.randrange(count + 1)
    answers = [answer.casefold() for answer in question.answers]
    around: list[str] = []
    tried: set[int] = set()
    while len(around) < count:
        if len(tried) == len(passages):
            raise UsageError(
                f"--distractors {count}: for question {question.id} data set {pool} has only {len(around)} other "
                "passages without a gold answer in them; use fewer"
            )
        index = _untried(generator, len(passages), tried)
        tried.add(index)
        if passages[index] != question.group and not any(answer in lowered[index] for answer in answers):
            around.append(passages[index])
    around.insert(position, question.group)
    return replace(question, context="\n\n".join(around), passage=question.group)


def _untried(generator: random.Random, count: int, tried: set[int]) -> int:
    """A random index that was not drawn yet. Few are needed, so not all are shuffled for each question."""
    if 2 * len(tried) > count:
        return generator.choice([index for index in range(count) if index not in tried])
    while (index := generator.randrange(count)) in tried:
        pass
    return index
