"""Exact match and F1 for SQuAD v1.1, where every question has an answer."""

from __future__ import annotations

from typing import Any

from .answer_match import exact_match, f1
from .squad_base import SquadMetric, percentage


class SquadV1(SquadMetric):
    """Exact match and F1 as percentages over all references; a question without a prediction scores 0."""

    description = "Exact match and F1 of SQuAD v1.1."

    def _score(self, predicted: dict[str, str], references: list[dict[str, Any]]) -> dict[str, float]:
        matches: list[float] = []
        overlaps: list[float] = []
        for reference in references:
            text, golds = predicted.get(reference["id"]), reference["answers"]["text"]
            matches.append(0.0 if text is None else exact_match(text, golds))
            overlaps.append(0.0 if text is None else f1(text, golds))
        return {"exact_match": percentage(matches), "f1": percentage(overlaps)}
