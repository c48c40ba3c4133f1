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
from .run import Evaluation
from .tasks.base import Prediction, Task

SCHEMA_VERSION = 1


def summarize(evaluation: Evaluation) -> dict[str, Any]:
    """Scores in percent for both arms, their difference, and what was kept, ready for JSON."""
    predictions, task = evaluation.predictions, evaluation.task
    questions = evaluation.questions
    primary = next(iter(task.metrics))
    return {
        "schema_version": SCHEMA_VERSION,
        "task": task.name,
        "dataset": {
            "name": questions.name,
            "split": questions.split,
            "fingerprint": questions.fingerprint,
            "version_2": questions.version_2,
            "questions": len(predictions),
            "left_out_too_long": evaluation.left_out,
        },
        "prompt": {"style": task.style, "first": evaluation.first_input},
        "batch_size": evaluation.batch_size,
        "max_new_tokens": task.max_new_tokens,
        "metrics": task.metrics,
        "scores": score(predictions, task),
        "by_kind": _by_kind(predictions, task),
        "changed": {
            "right_to_wrong": sum(p.scores["dense"][primary] > p.scores["patched"][primary] for p in predictions),
            "wrong_to_right": sum(p.scores["dense"][primary] < p.scores["patched"][primary] for p in predictions),
        },
        "same_answer_share": _mean([p.answers["dense"] == p.answers["patched"] for p in predictions]),
        "mean_kl": _mean_kl(predictions),
        "kl_unit": task.kl_unit,
        "mean_cosine": _mean([p.cosines["question"] for p in predictions if p.cosines]),
        "mean_passage_cosine": _mean([p.cosines["passage"] for p in predictions if p.cosines]),
        "seconds": evaluation.seconds,
        "kept": evaluation.meter.summary(),
    }


def score(predictions: Sequence[Prediction], task: Task) -> dict[str, dict[str, float]]:
    """{"dense": {metric: percent}, "patched": ..., "difference": patched - dense} for the task's metrics."""
    scores = task.score(predictions)
    dense, patched = scores["dense"], scores["patched"]
    return {**scores, "difference": {name: patched[name] - dense[name] for name in dense}}


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


def _by_kind(predictions: Sequence[Prediction], task: Task) -> dict[str, Any]:
    kinds: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction.question.kind:
            kinds[prediction.question.kind].append(prediction)
    return {kind: {"questions": len(members), **score(members, task)} for kind, members in sorted(kinds.items())}


def _mean_kl(predictions: Sequence[Prediction]) -> float | None:
    """Over all answer tokens where answers are generated, else over questions."""
    return _mean([p.kl for p in predictions if p.kl is not None for _ in range(p.answer_tokens or 1)])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
