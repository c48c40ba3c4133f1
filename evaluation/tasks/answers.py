"""What tasks share whose answers are words, held against gold answers as SQuAD does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..metrics import make_metric
from ..metrics.answer_match import exact_match, f1
from .base import Record, Task


class AnswerTask(Task):
    """A task with exact match and F1."""

    metrics: ClassVar[dict[str, str]] = {"exact_match": "EM", "f1": "F1"}
    right = "exact_match"

    @property
    def version_2(self) -> bool:
        """Whether the model may say that the passage holds no answer."""
        return self.items.dataset.version_2

    def score(self, record: Record, arm: str) -> dict[str, float]:
        text, golds = record.answer(arm)["answer"], record.item.answers
        return {
            "exact_match": exact_match(text, golds, version_2=self.version_2),
            "f1": f1(text, golds, version_2=self.version_2),
        }

    def totals(self, records: Sequence[Record], arm: str) -> dict[str, float]:
        return squad_scores(records, arm, self.version_2)

    def gold(self, item: Any) -> list[str]:
        return list(item.answers)


def squad_scores(records: Sequence[Record], arm: str, version_2: bool) -> dict[str, float]:
    """{"exact_match", "f1"} of an arm in percent, by the metric of SQuAD v1.1 or v2."""
    references = [
        {"id": r.item.id, "answers": {"text": list(r.item.answers), "answer_start": [0] * len(r.item.answers)}}
        for r in records
    ]
    given = [{"id": r.item.id, "prediction_text": r.answer(arm)["answer"]} for r in records]
    found = make_metric(version_2).compute(predictions=given, references=references) or {}
    return {"exact_match": found["exact" if version_2 else "exact_match"], "f1": found["f1"]}
