"""`sparsify calibrate`: fit thresholds on a person's questions and update the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..calibration.run import calibrate_plan, require_convertible
from ..environment import package_versions
from ..errors import require_at_least_one
from ..evaluation.items import ItemSet, content_hash
from ..evaluation.tasks import task_for
from ..patcher.methods import Method
from ..patcher.methods.budget import Budget
from ..patcher.recipe import CalibrationRecord, Recipe
from ..processes import Processes
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
    items: ItemSet,
    *,
    samples: int,
    seed: int,
    k: int | None = None,
    keep: float | None = None,
    processes: Processes | None = None,
    advance: Callable[[int], None] | None = None,
) -> Calibrated:
    """Calibrates the target's plan on `samples` items with their gold answers, at its own k or the one given.

    processes: those that share the samples; all of them get the same result. advance: called with the number of items
    done. UsageError for unusable options; DataError if every row of the samples is within k, so that there is nothing
    to fit.
    """
    check_options(samples, k, keep)
    processes = processes or Processes()
    chosen = items.sample(samples, seed)
    before = target.recipe.before_calibration or target.recipe.plan
    plan = target.recipe.plan
    require_convertible(plan)
    if k is not None or keep is not None:
        plan = {name: _with_budget(method, k, keep) for name, method in plan.items()}
        before = {name: _with_budget(method, k, keep) for name, method in before.items()}
    loaded, used = target.loaded, []
    task = task_for(loaded, chosen)

    def inputs() -> Iterator[dict[str, Any]]:
        for item in processes.share(chosen.items):
            samples_of_item = task.calibration_inputs(item)
            if samples_of_item:
                used.append(content_hash(item))
            yield from samples_of_item
            if advance is not None:
                advance(1)

    fitted, tables = calibrate_plan(loaded.model, plan, inputs(), processes)
    hashes = [hashed for part in processes.gather(used) for hashed in part]
    record = CalibrationRecord(
        dataset=items.name,
        split=items.split,
        fingerprint=items.fingerprint,
        samples=len(hashes),
        seed=seed,
        budget=", ".join(sorted({fitted[name].describe() for name in tables})),
        items=tuple(sorted(set(hashes))),
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
