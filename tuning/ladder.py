"""The candidates, from dense to sparse: at each budget the tuned allocation, and the uniform keep that sets the budget.

They are made from tuning data alone, so that the sequence is fixed before an evaluation item is seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import SparsifyError, UsageError
from .allocation import allocate
from .sensitivity import PREDICTED_KL, ModuleSensitivity, SensitivityMap

GOALS = ("kept", "v-rows", "latency")
UNITS = {"kept": "attention elements", "v-rows": "V rows in decoding", "latency": "time in the planned modules"}
BOTH = "multiply-adds of attention and feed-forward layers"  # kept, where both are tuned
DENSE = 1.0
RUNGS = (0.5, 0.25, 0.15, 0.1, 0.05, 0.03)
GRID = (DENSE, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02)
MOST_RUNGS = 8

TUNED, UNIFORM = "tuned", "uniform"
KL, STREAM = "predicted KL", "stream error"


@dataclass(frozen=True)
class Cell:
    """One candidate. keeps: of every module that is not dense, by name. keep: of a uniform cell. by: of a tuned one,
    the error that its allocation makes least. budget: what it may cost and cost: what it does cost by the map, as
    shares of the dense cost."""

    name: str
    label: str
    chain: str
    keeps: dict[str, float]
    keep: float | None
    by: str | None
    budget: float
    cost: float


def check_rungs(keeps: Sequence[float]) -> tuple[float, ...]:
    """Keep rates of a ladder, from dense to sparse; UsageError for what cannot be one."""
    if not keeps or len(keeps) > MOST_RUNGS or len(set(keeps)) < len(keeps):
        raise UsageError(f"--keep takes 1 to {MOST_RUNGS} different fractions, such as 0.5,0.25,0.1")
    if outside := [keep for keep in keeps if not 0 < keep < 1]:
        raise UsageError(f"--keep takes fractions above 0 and below 1, not {outside[0]:g}")
    return tuple(sorted(keeps, reverse=True))


def grid_for(rungs: Sequence[float]) -> list[float]:
    """The keep rates at which modules are measured: 1.0 first."""
    return sorted({*GRID, *rungs}, reverse=True)


def make_ladder(
    found: SensitivityMap, goal: str, rungs: Sequence[float], uniform: Collection[str]
) -> tuple[list[list[Cell]], list[Cell]]:
    """For each budget the tuned cells, one for each error of the map, and the uniform cells; from dense to sparse.

    rungs: keep rates of the map. uniform: the modules that the uniform keep is for. Each rung's budget is what the
    uniform keep costs; for latency, where that may be more than dense, even steps from dense to the fastest. A budget
    that leaves all dense, or gives what one before gave, has no cell. SparsifyError if no module saves anything.
    """
    costs = costs_of(found, goal)
    dense, least = float(costs[:, 0].sum()), float(costs.min(1).sum())
    if not dense or least >= dense:
        raise SparsifyError(_nothing_saved(goal))
    ladder = [_uniform(found, goal, rung, uniform) for rung in rungs]
    even = np.linspace(dense, least, len(rungs) + 1)[1:] / dense
    budgets = even.tolist() if goal == "latency" else [cell.cost for cell in ladder]
    tuned: list[list[Cell]] = []
    before: list[dict[str, float]] = [{}]
    for rung, budget in zip(rungs, budgets, strict=True):
        cells = [_tuned(found, goal, rung, budget, by) for by in errors_of(found)]
        new = [
            cell for place, cell in enumerate(cells) if cell.keeps not in [*before, *(c.keeps for c in cells[:place])]
        ]
        before += [cell.keeps for cell in new]
        if new:
            tuned.append(new)
    return tuned, ladder


def errors_of(found: SensitivityMap) -> dict[str, NDArray[np.float64]]:
    """What an allocation may make least, each [modules, keeps]."""
    errors = {STREAM: np.array([module.stream_error for module in found.modules.values()])}
    if found.error_is == PREDICTED_KL:
        errors = {KL: np.array([module.error for module in found.modules.values()]), **errors}
    return errors


def costs_of(found: SensitivityMap, goal: str) -> NDArray[np.float64]:
    """What each module costs at each keep rate, [modules, keeps]: multiply-adds, V rows or microseconds."""
    return np.array([_costs(module, goal) for module in found.modules.values()])


def weights_of(found: SensitivityMap, goal: str) -> dict[str, float]:
    """Each module's share of the dense cost."""
    dense = costs_of(found, goal)[:, 0]
    return dict(zip(found.modules, (dense / dense.sum()).tolist(), strict=True))


def share_kept(found: SensitivityMap, goal: str, keeps: Mapping[str, float]) -> float:
    """The cost by the map of modules at their keep rates, all others dense, as a share of the dense cost."""
    costs = costs_of(found, goal)
    places = [found.keeps.index(keeps.get(name, DENSE)) for name in found.modules]
    return float(costs[np.arange(len(places)), places].sum() / costs[:, 0].sum())


def _costs(module: ModuleSensitivity, goal: str) -> list[float]:
    if goal == "latency":
        return list(module.microseconds or [])
    if goal == "v-rows":
        return [module.decode_rows * share for share in module.v_rows or [0.0] * len(module.kept)]
    return [module.elements * module.width * share for share in module.kept]


def _tuned(found: SensitivityMap, goal: str, rung: float, budget: float, by: str) -> Cell:
    costs = costs_of(found, goal)
    chosen = allocate(errors_of(found)[by], costs, budget * float(costs[:, 0].sum()) * (1 + 1e-9))
    keeps = {name: found.keeps[place] for name, place in zip(found.modules, chosen, strict=True) if place}
    if goal == "latency":
        name, label = f"tuned-time-{budget:.3f}", f"tuned, {100 * budget:.0f} % of the time"
    else:
        name, label = f"tuned-keep-{rung:g}", f"tuned, at the budget of keep = {rung:g}"
    return Cell(name, label, TUNED, keeps, None, by, budget, share_kept(found, goal, keeps))


def _uniform(found: SensitivityMap, goal: str, rung: float, modules: Collection[str]) -> Cell:
    keeps = dict.fromkeys((name for name in found.modules if name in modules), rung)
    cost = share_kept(found, goal, keeps)
    return Cell(f"uniform-keep-{rung:g}", f"uniform, keep = {rung:g}", UNIFORM, keeps, rung, None, cost, cost)


def _nothing_saved(goal: str) -> str:
    if goal == "latency":
        return "no module is faster at any keep rate on these items: tune on longer ones, or for --goal kept"
    if goal == "v-rows":
        return "no V rows are read in decoding here: tune for --goal kept"
    return "no row of these items is long enough to keep less of it: tune on longer items"
