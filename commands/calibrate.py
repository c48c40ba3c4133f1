"""`sparsify calibrate`: fit thresholds on a person's questions and update the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..calibration.run import calibrate_plan, require_convertible
from ..environment import package_versions
from ..errors import DataError, require_at_least_one
from ..evaluation.questions import QuestionSet
from ..evaluation.tasks import task_for
from ..patcher.methods import Method
from ..patcher.methods.budget import Budget
from ..patcher.recipe import CalibrationRecord, Recipe
from .patch import check_exclusive
from .target import Target


@dataclass(frozen=True)
class Calibrated:
    """The updated recipe, and the modules none of whose rows was longer than their budget (they stay dense)."""

    recipe: Recipe
    without_thresholds: list[str]


def check_options(samples: int, k: int | None, keep: float | None) -> None:
    """UsageError for what is wrong whatever the model and the data are."""
    require_at_least_one(samples=samples)
    check_exclusive(k, keep)
    if k is not None or keep is not None:
        Budget(k=k, keep=keep)


def calibrate_target(
    target: Target,
    questions: QuestionSet,
    *,
    samples: int,
    seed: int,
    k: int | None = None,
    keep: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> Calibrated:
    """Calibrates the target's plan on `samples` questions with their gold answers, at its own k or the one given.

    advance: called with the number of questions done. UsageError for unusable options; DataError if every row of the
    samples is within k, so that there is nothing to fit.
    """
    check_options(samples, k, keep)
    chosen = questions.sample(samples, seed)
    before = target.recipe.before_calibration or target.recipe.plan
    plan = target.recipe.plan
    require_convertible(plan)
    if k is not None or keep is not None:
        plan = {name: _with_budget(method, k, keep) for name, method in plan.items()}
        before = {name: _with_budget(method, k, keep) for name, method in before.items()}
    loaded, used = target.loaded, 0
    task = task_for(loaded, chosen)

    def inputs() -> Iterator[dict[str, Any]]:
        nonlocal used
        for question in chosen.questions:
            samples_of_question = task.calibration_inputs(question)
            used += bool(samples_of_question)
            yield from samples_of_question
            if advance is not None:
                advance(1)
        if not used:
            raise DataError(f"no question of {questions.name} fits what the model can read at once")

    fitted, tables = calibrate_plan(loaded.model, plan, inputs())
    record = CalibrationRecord(
        dataset=questions.name,
        split=questions.split,
        fingerprint=questions.fingerprint,
        samples=used,
        seed=seed,
        budget=", ".join(sorted({fitted[name].describe() for name in tables})),
    )
    recipe = replace(
        target.recipe,
        base_model=loaded.base,
        plan=fitted,
        thresholds=tables,
        calibration=record,
        before_calibration=before,
        versions=package_versions(),
    )
    converted = [name for name, method in fitted.items() if method.needs_thresholds]
    return Calibrated(recipe, [name for name in converted if name not in tables])


def _with_budget(method: Method, k: int | None, keep: float | None) -> Method:
    return replace(method, k=k, keep=keep) if isinstance(method, Budget) else method
