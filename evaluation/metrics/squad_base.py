"""What both SQuAD metrics share: the input format, and an `evaluate` metric that leaves no files behind."""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import evaluate

from ...errors import DataError

CITATION = """@inproceedings{rajpurkar-etal-2016-squad,
  title = {{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
  author = {Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle = {Proceedings of EMNLP}, year = {2016}
}"""

INPUTS = """
predictions: a list of {"id": str, "prediction_text": str}.
references: a list of {"id": str, "answers": {"text": [str, ...], "answer_start": [int, ...]}}.
Predictions and references are matched by id.
"""


class SquadMetric(evaluate.Metric):
    """An `evaluate` metric over SQuAD predictions and references, in memory and without the Hub.

    `compute` raises DataError if there is nothing to score.
    """

    description = ""

    def __init__(self) -> None:
        # `evaluate` makes a cache folder even for a metric that keeps everything in memory. It gets one that is gone
        # again: nothing is left behind, a read-only home does not matter and two processes cannot meet. The seed is
        # given because it would otherwise be taken from numpy's global generator; nothing here is random.
        with tempfile.TemporaryDirectory() as scratch:
            super().__init__(keep_in_memory=True, cache_dir=scratch, seed=0)

    def _info(self) -> Any:
        text = datasets.Value("string")
        answers = datasets.Sequence({"text": text, "answer_start": datasets.Value("int32")})
        features = datasets.Features(
            {
                "predictions": {"id": text, "prediction_text": text},
                "references": {"id": text, "answers": answers},
            }
        )
        return evaluate.MetricInfo(
            description=self.description, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(self, predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, float]:
        if not references:
            raise DataError("there is nothing to score")
        return self._score({p["id"]: p["prediction_text"] for p in predictions}, references)

    def _score(self, predicted: dict[str, str], references: list[dict[str, Any]]) -> dict[str, float]:
        """The scores of the predicted texts, which come by question id."""
        raise NotImplementedError


def percentage(scores: list[float]) -> float:
    """The mean of scores from 0 to 1, as a percentage."""
    return 100.0 * sum(scores) / len(scores)
