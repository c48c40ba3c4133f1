"""What tasks share whose answers are words, held against gold answers as SQuAD does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..metrics import make_metric
from ..metrics.answer_match import exact_match, f1
from ..questions import Question
from .base import ARMS, Prediction, Task


class AnswerTask(Task):
    """A task with exact match and F1."""

    metrics: ClassVar[dict[str, str]] = {"exact_match": "EM", "f1": "F1"}

    def score(self, predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        return squad_scores(predictions, self.questions.version_2)

    def prediction(
        self, question: Question, tokens: int, answers: dict[str, str], kl: float, answer_tokens: int | None = None
    ) -> Prediction:
        """A prediction with its scores."""
        version_2 = self.questions.version_2
        scores = {
            arm: {
                "exact_match": exact_match(answers[arm], question.answers, version_2=version_2),
                "f1": f1(answers[arm], question.answers, version_2=version_2),
            }
            for arm in ARMS
        }
        return Prediction(question, question.answers, tokens, answers, scores, kl, answer_tokens)


def squad_scores(predictions: Sequence[Prediction], version_2: bool) -> dict[str, dict[str, float]]:
    """{"dense": {"exact_match", "f1"}, "patched": ...} in percent, by the metric of SQuAD v1.1 or v2."""
    metric = make_metric(version_2)
    references = [
        {
            "id": p.question.id,
            "answers": {"text": list(p.question.answers), "answer_start": [0] * len(p.question.answers)},
        }
        for p in predictions
    ]
    scores: dict[str, dict[str, float]] = {}
    for arm in ARMS:
        given = [{"id": p.question.id, "prediction_text": p.answers[arm]} for p in predictions]
        found = metric.compute(predictions=given, references=references) or {}
        scores[arm] = {"exact_match": found["exact" if version_2 else "exact_match"], "f1": found["f1"]}
    return scores
