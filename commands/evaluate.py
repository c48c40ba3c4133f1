"""`sparsify eval`: dense and patched on the same questions, and where the results go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from ..environment import package_versions
from ..errors import UsageError, require_at_least_one
from ..evaluation.questions import QuestionSet
from ..evaluation.results import save_results, summarize
from ..evaluation.run import Evaluation, evaluate
from ..patcher.methods import method_to_dict
from ..patcher.plan import describe_plan
from ..patcher.recipe import Recipe, check_place
from .target import Target


def check_options(limit: int | None, batch_size: int, max_new_tokens: int, output: Path | None) -> None:
    """UsageError for what is wrong whatever the model and the data are; SparsifyError if output cannot be written."""
    require_at_least_one(limit=limit, batch_size=batch_size, max_new_tokens=max_new_tokens)
    if output is not None:
        _check_new(output)


def evaluate_target(
    target: Target,
    questions: QuestionSet,
    *,
    limit: int | None,
    seed: int,
    batch_size: int,
    max_new_tokens: int,
    as_top_k: bool = False,
    output: Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Evaluates, writes results.json and predictions.jsonl, returns the results and their directory.

    output: the directory to write; by default RECIPE/eval/RUN_ID, or ./sparsified-eval/RUN_ID for a bare model.
    as_top_k: run the plan from before calibration. Raises what evaluate and save_results raise.
    """
    recipe = target.recipe.as_top_k() if as_top_k else target.recipe
    chosen = questions.sample(limit, seed)
    run_id = f"{datetime.now():%Y%m%d-%H%M%S}-{_short_hash(recipe, chosen, seed)}"
    directory = output or _unused((target.directory / "eval" if target.directory else Path("sparsified-eval")) / run_id)
    _check_new(directory)
    evaluation = evaluate(
        target.loaded,
        recipe.plan,
        chosen,
        thresholds=recipe.thresholds,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        advance=advance,
    )
    results = {
        "run_id": directory.name if output is None else run_id,
        **describe(target, recipe, evaluation, limit=limit, seed=seed),
    }
    return results, save_results(results, evaluation.predictions, directory)


def describe(target: Target, recipe: Recipe, evaluation: Evaluation, *, limit: int | None, seed: int) -> dict[str, Any]:
    """The results of an evaluation with all that is needed to tell what was run."""
    model = target.loaded.model
    return {
        "base_model": asdict(target.loaded.base),
        "method": describe_plan(recipe.plan),
        "plan": {name: method_to_dict(method) for name, method in recipe.plan.items()},
        "calibration": recipe.to_dict()["calibration"],
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "seed": seed,
        "limit": limit,
        **summarize(evaluation),
        "versions": package_versions(),
    }


def _check_new(directory: Path) -> None:
    if directory.exists():
        raise UsageError(f"{directory} exists already: give -o another directory for the results")
    check_place(directory, "results")


def _unused(directory: Path) -> Path:
    """The directory, or with -2, -3 ... behind its name if two runs began in the same second."""
    names = (directory if number == 1 else directory.with_name(f"{directory.name}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _short_hash(recipe: Recipe, questions: QuestionSet, seed: int) -> str:
    content = [replace(recipe, versions={}).to_dict(), questions.fingerprint, len(questions), seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
