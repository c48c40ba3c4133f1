"""Any data set as it would stand in UnifiedQA's files, so that choices and labels are answered in words."""

from __future__ import annotations

from .datasets.base import Dataset
from .datasets.unifiedqa import NO_ANSWER, UNIFIEDQA_FILE, question_of
from .items import Item, ItemSet, Question, make_item_set
from .prompts import UNIFIEDQA
from .shots import shot_answer


def encode(items: ItemSet) -> ItemSet:
    """The same items in UnifiedQA's encoding, lower-cased; those that are encoded already stay as they are.

    UsageError for items without an answer to write, such as plain text.
    """
    dataset = items.dataset
    encoded = (
        question_of(item.id, dataset.prompt(item, UNIFIEDQA).text, _golds(item, dataset), item.kind)
        for item in items.items
    )
    return make_item_set(items.name, items.split, encoded, UNIFIEDQA_FILE)


def _golds(item: Item, dataset: Dataset) -> list[str]:
    if isinstance(item, Question):
        return list(item.answers) or [NO_ANSWER]
    return [shot_answer(item, dataset)]
