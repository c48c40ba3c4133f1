"""From an evaluation to what is saved: results.json and predictions.jsonl."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SparsifyError
from .run import ARMS, Evaluation, Prediction

SCHEMA_VERSION = 1


def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """Scores in percent for both arms, their difference, and what was kept, ready for JSON."""
    predictions = evaluation.predictions
    questions = evaluation.questions
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": {
            "name": questions.name,
            "split": questions.split,
            "fingerprint": questions.fingerprint,
            "version_2": questions.version_2,
            "questions": len(predictions),
            "left_out_too_long": evaluation.left_out,
        },
        "prompt": {"style": evaluation.style, "first": evaluation.first_prompt},
        "batch_size": evaluation.batch_size,
        "max_new_tokens": evaluation.max_new_tokens,
        "scores": score(predictions, questions.version_2),
        "by_kind": _by_kind(predictions, questions.version_2),
        "changed": {
            "right_to_wrong": sum(p.exact_match["dense"] > p.exact_match["patched"] for p in predictions),
            "wrong_to_right": sum(p.exact_match["dense"] < p.exact_match["patched"] for p in predictions),
        },
        "same_answer_share": _mean([p.answers["dense"] == p.answers["patched"] for p in predictions]),
        "mean_kl": _mean([p.kl for p in predictions for _ in range(p.answer_tokens)]),
        "seconds": evaluation.seconds,
        "kept": evaluation.meter.summary(),
    }


def score(predictions: Sequence[Prediction], version_2: bool) -> dict[str, dict[str, float]]:
    """{"dense": {"exact_match", "f1"}, "patched": ..., "difference": patched - dense}, in percent."""
    from .metrics import make_metric

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
    scores["difference"] = {name: scores["patched"][name] - scores["dense"][name] for name in scores["dense"]}
    return scores


def save_results(results: dict[str, Any], predictions: Sequence[Prediction], directory: Path) -> Path:
    """Writes results.json and predictions.jsonl into a new directory, which appears complete or not at all.

    SparsifyError if it exists or cannot be written.
    """
    if directory.exists():
        raise SparsifyError(f"cannot write the results: {directory} exists already")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".writing-") as scratch:
            made = Path(scratch) / "run"
            made.mkdir()
            (made / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            with (made / "predictions.jsonl").open("w", encoding="utf-8") as file:
                for prediction in predictions:
                    file.write(json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n")
            os.replace(made, directory)
    except OSError as error:
        raise SparsifyError(f"cannot write the results to {directory}: {error.strerror or error}") from None
    return directory


def _by_kind(predictions: Sequence[Prediction], version_2: bool) -> dict[str, Any]:
    kinds: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction.question.kind:
            kinds[prediction.question.kind].append(prediction)
    return {kind: {"questions": len(members), **score(members, version_2)} for kind, members in sorted(kinds.items())}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
