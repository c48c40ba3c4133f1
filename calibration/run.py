"""Calibrating a patched model: run it on samples, observe every planned module, fit thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import DataError, SparsifyError, UsageError
from ..patcher.binding.modules import attention_modules, unwrapped
from ..patcher.binding.patching import Patch, apply_plan
from ..patcher.methods import Method, TopK, TopTheta, exact_top_k
from ..patcher.methods.budget import Budget, budget_of
from ..patcher.methods.top_theta import denominator_for
from ..patcher.outputs import require_finite
from ..patcher.thresholds import ModuleThresholds
from ..processes import Processes
from .estimators import fit
from .histogram import ScoreHistogram
from .options import CalibrationOptions

Histograms = dict[str, ScoreHistogram]
Inputs = dict[str, Tensor]


@dataclass
class Observed:
    """What has been counted by module name, and the names of the items that it comes from.

    whole: False while an item is being added; what is then there belongs to no set of items.
    """

    histograms: Histograms
    items: list[str] = field(default_factory=list)
    whole: bool = True

    def add(self, other: Observed) -> None:
        """Adds what was counted elsewhere of the same modules on other items."""
        self.whole = False
        for name, histogram in other.histograms.items():
            self.histograms[name].merge(histogram)
        self.items += other.items
        self.whole = True


@dataclass(frozen=True)
class Calibration:
    """The plan with its thresholds, and what they were fitted on; a module without long rows has no thresholds."""

    plan: dict[str, Method]
    thresholds: dict[str, ModuleThresholds]
    observed: Observed


def calibrate_plan(
    model: nn.Module,
    plan: Mapping[str, Method],
    samples: Iterable[Inputs],
    options: CalibrationOptions | None = None,
    processes: Processes | None = None,
) -> Calibration:
    """calibrate_items on samples that are an item each: model inputs (input_ids and the like, batch first)."""
    items = ((str(index), [sample]) for index, sample in enumerate(samples))
    return calibrate_items(model, plan, items, options, processes)


def calibrate_items(
    model: nn.Module,
    plan: Mapping[str, Method],
    items: Iterable[tuple[str, list[Inputs]]],
    options: CalibrationOptions | None = None,
    processes: Processes | None = None,
    observed: Observed | None = None,
) -> Calibration:
    """Fits thresholds for every top-k or top-theta module of a plan at that module's own budget.

    items: a name and model inputs, run without gradients or cache; an item counts as a whole. observed: what was
    counted before, to be added to in place item by item. processes: each observes items of its own, and all get the
    thresholds of all items together, or fail if one does. While they are observed these modules run exact top-k with
    their compensation, or dense (see CalibrationOptions), and every other module what is planned. The model must not be
    patched, and is left as it was. Raises UsageError if no module of the plan takes thresholds or options do not go
    together, DataError if there are no items or all their rows are within their budget.
    """
    options = options or CalibrationOptions()
    require_convertible(plan)
    fitted = fitted_plan(plan, options)
    observed, processes = observed or start(model, fitted, options), processes or Processes()
    with processes.together():
        _observe(model, plan, items, options, observed)
    together = _gathered(observed, processes)
    count = len(together.items)
    if not count:
        raise DataError("there is no sample to calibrate on that fits what the model can read at once")
    tables = fit_plan(fitted, together.histograms, options)
    if not tables:
        raise DataError(
            f"no row of the {count} samples sees more keys than its k, so there is no threshold to fit: "
            "use a smaller --k, or longer data"
        )
    return Calibration(fitted, tables, together)


def fit_plan(
    plan: Mapping[str, Method], histograms: Mapping[str, ScoreHistogram], options: CalibrationOptions
) -> dict[str, ModuleThresholds]:
    """Thresholds for the modules of a plan at its budgets, which need not be those that were calibrated.

    A module whose rows are all within its budget has none. UsageError as in estimators.fit.
    """
    fits = {
        name: fit(histogram, method, options.estimator, options.alpha)
        for name, histogram in histograms.items()
        if isinstance(method := plan.get(name), Budget)
    }
    return {name: table for name, table in fits.items() if table is not None}


def require_convertible(plan: Mapping[str, Method]) -> None:
    """UsageError, with the reason, if no module of a plan takes thresholds."""
    if not any(isinstance(method, Budget) for method in plan.values()):
        names = " and ".join(sorted({method.name for method in plan.values()}))
        raise UsageError(f"nothing to calibrate: thresholds are for top-k attention, and the plan holds {names} alone")


def fitted_plan(plan: Mapping[str, Method], options: CalibrationOptions) -> dict[str, Method]:
    """The plan with top-k as top-theta of the same budget, and the placement and denominator that are asked for."""
    return {
        name: _with_thresholds(method, options) if isinstance(method, Budget) else method
        for name, method in plan.items()
    }


def _with_thresholds(method: Budget, options: CalibrationOptions) -> TopTheta:
    made = method if isinstance(method, TopTheta) else TopTheta(**budget_of(method))
    had = denominator_for(options.placement, method.denominator) if isinstance(method, TopK | TopTheta) else "exact"
    return replace(made, placement=options.placement or made.placement, denominator=options.denominator or had)


def start(model: nn.Module, fitted: Mapping[str, Method], options: CalibrationOptions) -> Observed:
    """Empty histograms for the top-theta modules of a plan."""
    found = {module.name: module for module in attention_modules(unwrapped(model))}
    histograms = {}
    for name, method in fitted.items():
        if isinstance(method, TopTheta) and name in found:
            histograms[name] = ScoreHistogram(
                Budget(**budget_of(method)),
                method.placement,
                nature=found[name].nature,
                limits=options.estimator == "mean",
                mass=method.denominator == "offline",
            )
    return Observed(histograms)


def _observe(
    model: nn.Module,
    plan: Mapping[str, Method],
    items: Iterable[tuple[str, list[Inputs]]],
    options: CalibrationOptions,
    observed: Observed,
) -> None:
    """Runs the model on all items and adds what each gives as a whole, so that Ctrl-C leaves no half of one."""
    watched = {name: _while_observed(method, options) for name, method in plan.items()}
    with apply_plan(model, watched) as patch, torch.inference_mode():
        modules = [module for module in patch.attention_patches if module.name in observed.histograms]
        for name, inputs in items:
            seen = {module.name: observed.histograms[module.name].empty() for module in modules}
            for module in modules:
                module.observer = seen[module.name]
            for one in inputs:
                _run(model, patch, one)
            observed.add(Observed(seen, [name]))
        patch.log_paths()


def _run(model: nn.Module, patch: Patch, inputs: Inputs) -> None:
    """Raises what require_finite raises; whether the dense model is to blame is looked at only then."""
    output = model(**inputs, use_cache=False)
    try:
        require_finite(unwrapped(model), output, inputs, patched=True)
    except SparsifyError:
        with patch.paused():
            require_finite(unwrapped(model), model(**inputs, use_cache=False), inputs)
        raise


def _while_observed(method: Method, options: CalibrationOptions) -> Method:
    if not isinstance(method, Budget):
        return method
    return exact_top_k(method) if options.activations == "sparse" else exact_top_k(method).as_dense()


def _gathered(observed: Observed, processes: Processes) -> Observed:
    """What all processes have observed together."""
    parts: list[Observed] = processes.gather(observed)
    for other in parts[1:]:
        parts[0].add(other)
    return parts[0]
