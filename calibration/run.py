"""Calibrating a patched model: run it on samples, observe every planned module, fit thresholds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..errors import DataError, UsageError
from ..patcher.binding.patching import Patch, apply_plan, remove_patch
from ..patcher.methods import Method, TopTheta, exact_top_k
from ..patcher.methods.budget import Budget, budget_of
from ..patcher.thresholds import ModuleThresholds
from ..processes import Processes
from .histogram import ScoreHistogram


def calibrate_plan(
    model: nn.Module,
    plan: dict[str, Method],
    samples: Iterable[dict[str, torch.Tensor]],
    processes: Processes | None = None,
) -> tuple[dict[str, Method], dict[str, ModuleThresholds]]:
    """Fits thresholds for every top-k or top-theta module of a plan at that module's own budget.

    samples: model inputs (input_ids and the like, batch first, one sequence each), without gradients or cache.
    processes: each observes samples of its own, and all get the thresholds of all samples together.
    While it is observed each of them runs exact top-k at its budget and every other module what is planned, so that
    deeper modules see sparse activations. Returns the plan with those modules as top-theta, and their tables; a module
    none of whose rows was longer than its budget has none. The model must not be patched, and is left as it was.
    Raises UsageError if no module of the plan takes thresholds, DataError if there are no samples or
    all their rows are within their budget.
    """
    require_convertible(plan)
    patch = apply_plan(model, {name: exact_top_k(method) for name, method in plan.items()})
    try:
        observed = _observe(patch)
        count = _run(model, samples)
    finally:
        remove_patch(model)
    observed, count = _gathered(observed, count, processes or Processes())
    if not count:
        raise DataError("there is no sample to calibrate on that fits what the model can read at once")
    fits = {name: histogram.fit() for name, histogram in observed.items()}
    tables = {name: table for name, table in fits.items() if table is not None}
    if not tables:
        raise DataError(
            f"no row of the {count} samples sees more keys than its k, so there is no threshold to fit: "
            "use a smaller --k, or longer data"
        )
    fitted = {name: _with_thresholds(method) for name, method in plan.items()}
    return fitted, tables


def require_convertible(plan: dict[str, Method]) -> None:
    """UsageError, with the reason, if no module of a plan takes thresholds."""
    if not any(isinstance(method, Budget) for method in plan.values()):
        names = " and ".join(sorted({method.name for method in plan.values()}))
        raise UsageError(f"nothing to calibrate: thresholds are for top-k attention, and the plan holds {names} alone")


def _with_thresholds(method: Method) -> Method:
    if isinstance(method, TopTheta) or not isinstance(method, Budget):
        return method
    return TopTheta(**budget_of(method))


def _observe(patch: Patch) -> dict[str, ScoreHistogram]:
    observed = {}
    for module in patch.attention_patches:
        if isinstance(module.method, Budget):
            module.observer = observed[module.name] = ScoreHistogram(module.method)
    return observed


def _run(model: nn.Module, samples: Iterable[dict[str, torch.Tensor]]) -> int:
    """Runs the model on all samples and says how many there were."""
    count = 0
    with torch.inference_mode():
        for inputs in samples:
            model(**inputs, use_cache=False)
            count += 1
    return count


def _gathered(
    observed: dict[str, ScoreHistogram], count: int, processes: Processes
) -> tuple[dict[str, ScoreHistogram], int]:
    """What all processes have observed of each module, and on how many samples."""
    first, *others = processes.gather((observed, count))
    for histograms, samples in others:
        for name, histogram in histograms.items():
            first[0][name].merge(histogram)
        first = (first[0], first[1] + samples)
    return first
