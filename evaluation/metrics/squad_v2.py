"""Exact match and F1 for SQuAD v2, where some questions have no answer and "" is the prediction that says so."""

from __future__ import annotations

from typing import Any

from ...errors import DataError
from .answer_match import exact_match, f1
from .squad_base import SquadMetric, percentage


class SquadV2(SquadMetric):
    """Exact match and F1 as percentages: over all references, over those with an answer and over those without.

    `compute` raises DataError for a reference without a prediction.
    """

    description = "Exact match and F1 of SQuAD v2."

    def _score(self, predicted: dict[str, str], references: list[dict[str, Any]]) -> dict[str, float]:
        groups: dict[str, list[tuple[float, float]]] = {"": [], "HasAns_": [], "NoAns_": []}
        for reference in references:
            if reference["id"] not in predicted:
                raise DataError(f"there is no prediction for question {reference['id']}")
            text, golds = predicted[reference["id"]], reference["answers"]["text"]
            scores = exact_match(text, golds, version_2=True), f1(text, golds, version_2=True)
            groups[""].append(scores)
            groups["HasAns_" if golds else "NoAns_"].append(scores)
        results: dict[str, float] = {}
        for prefix, pairs in groups.items():
            if pairs:
                results[f"{prefix}exact"] = percentage([match for match, _ in pairs])
                results[f"{prefix}f1"] = percentage([overlap for _, overlap in pairs])
                results[f"{prefix}total"] = len(pairs)
        return results
