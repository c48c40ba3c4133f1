"""Budgets: of each module's keep rates choose one, so that the total error is least at a cost that is allowed.

This is the multiple-choice knapsack problem. It is solved exactly by dynamic programming, for costs rounded up to
steps so fine that they add up to at most half a percent of the budget. SciPy's `milp` (HiGHS) takes seconds for 200
modules and prints a line of its own on stdout, where a command's results go.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError, require_at_least_one

STEPS = 10_000  # of a budget, or STEPS_EACH for every module where that is more
STEPS_EACH = 200

Floats = NDArray[np.float64]


def allocate(errors: ArrayLike, costs: ArrayLike, budget: float, *, steps: int | None = None) -> list[int]:
    """For each module the place of its choice, so that the sum of errors is least and that of costs within budget.

    errors, costs: [modules, choices], finite. steps: into how many the part of the budget that is free to spend is
    cut (default: STEPS, or STEPS_EACH for every module). Among equal errors the cheapest choice is taken. UsageError if
    even the cheapest choices cost more than the budget.
    """
    require_at_least_one(steps=steps)
    error, cost = np.asarray(errors, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    cheapest = cost.min(1, keepdims=True)
    free = budget - float(cheapest.sum())
    if free < -1e-9 * abs(budget):
        raise UsageError(f"no choice of keep rates costs at most {budget:g}: the cheapest costs {cheapest.sum():g}")
    steps = steps or max(STEPS, STEPS_EACH * len(error))
    taken = _in_steps(cost - cheapest, max(free, 0.0), steps)
    return _least_error(error, taken, steps)


def _in_steps(extra: Floats, free: float, steps: int) -> NDArray[np.int64]:
    """Costs beyond the cheapest in steps of the free budget, rounded up; steps + 1 for what can never be paid."""
    if free <= 0:
        return np.where(extra > 0, steps + 1, 0)
    # A whole number of steps stays one in spite of rounding.
    counted = np.ceil(extra / free * steps - 1e-9)
    return np.minimum(counted, steps + 1).astype(np.int64)


def _least_error(error: Floats, taken: NDArray[np.int64], steps: int) -> list[int]:
    """The choices; taken: their costs in steps, of which there are so many."""
    least = np.zeros(steps + 1)  # by the steps that may be spent
    chosen = np.zeros((len(error), steps + 1), dtype=np.int16)
    for module, (module_errors, module_steps) in enumerate(zip(error, taken, strict=True)):
        totals = np.full((len(module_errors), steps + 1), np.inf)
        for choice, (value, price) in enumerate(zip(module_errors, module_steps, strict=True)):
            if price <= steps:
                totals[choice, price:] = least[: steps + 1 - price] + value
        cheapest_first = module_steps.argsort(kind="stable")
        chosen[module] = cheapest_first[totals[cheapest_first].argmin(0)]
        least = totals.min(0)
    choices, left = [0] * len(error), steps
    for module in reversed(range(len(error))):
        choices[module] = int(chosen[module, left])
        left -= int(taken[module, choices[module]])
    return choices
