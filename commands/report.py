"""What patch, calibrate, generate and methods print."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import attention_modules
from ..patcher.methods import METHODS
from ..patcher.proof import Check
from .calibrate import Calibrated
from .patch import Planned


def patch_report(planned: Planned, loaded: LoadedModel, checks: list[Check], written: Path | None) -> RenderableType:
    """The plan by kind of module, the proof, and where the recipe went."""
    parts: list[RenderableType] = [_plan_table(planned, loaded)]
    if planned.unreachable:
        names = ", ".join(planned.unreachable)
        parts.append(Text(f"stays dense, it computes attention outside the interface: {names}", style="yellow"))
    if any(method.needs_thresholds for method in planned.recipe.plan.values()):
        parts.append(Text("not calibrated yet: every row uses its own exact top-k until `sparsify calibrate`"))
    if checks:
        parts.append(_checks_table(checks))
    if written is None:
        parts.append(Text("dry run: nothing was written"))
    else:
        parts.append(Text(f"wrote {written}   next: sparsify calibrate, or sparsify eval"))
    return Group(*parts)


def _plan_table(planned: Planned, loaded: LoadedModel) -> Table:
    base = planned.recipe.base_model
    table = Table(title=f"{Path(base.id).name}: {base.model_type}, {base.task}", title_justify="left")
    for column in ("attention", "modules", "layers", "method", "left dense"):
        table.add_column(column, justify="right" if column in ("modules", "left dense") else "left")
    groups = [(module, f"{module.stack} {module.kind}") for module in attention_modules(loaded.model)]
    for group in dict.fromkeys(label for _, label in groups):
        members = [module for module, label in groups if label == group]
        chosen = [module for module in members if module.name in planned.recipe.plan]
        methods = Counter(
            f"{planned.recipe.plan[module.name].name}, {planned.recipe.plan[module.name].describe()}"
            for module in chosen
        )
        table.add_row(
            group,
            str(len(chosen)),
            _ranges([module.layer for module in chosen if module.layer is not None]),
            "; ".join(methods) or "-",
            str(len(members) - len(chosen)),
        )
    return table


def _checks_table(checks: list[Check]) -> Table:
    table = Table(title="Proof of patch", title_justify="left", show_header=False, box=None)
    for check in checks:
        error = "" if check.error is None else f"relative difference {check.error:.1e}"
        table.add_row("ok" if check.passed else "FAILED", check.name, error)
    return table


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def calibration_report(calibrated: Calibrated, directory: Path) -> RenderableType:
    """What was fitted, and what has no threshold."""
    recipe, tables = calibrated.recipe, calibrated.recipe.thresholds
    record = recipe.calibration
    source = "" if record is None else f"{record.samples} questions of {record.dataset}, {record.budget}"
    table = Table(title=f"Calibrated on {source}", title_justify="left", show_header=False, box=None)
    shortest, longest = min(t.shortest for t in tables.values()), max(t.longest for t in tables.values())
    heads = sum(t.heads for t in tables.values())
    table.add_row("modules with thresholds", f"{len(tables)} of {len(recipe.plan)}")
    table.add_row("thresholds", f"{sum(t.theta.numel() for t in tables.values())} for {heads} query heads")
    table.add_row("row lengths covered", f"{shortest} to {longest} keys (longer rows use their own exact top-k)")
    if calibrated.without_thresholds:
        names = calibrated.without_thresholds
        table.add_row("rows never longer than k", f"{len(names)} modules, e.g. {names[0]}: they stay dense there")
    return Group(table, Text(f"wrote {directory}   next: sparsify eval"))


def answers_report(answers: dict[str, Any]) -> RenderableType:
    """Two answers side by side."""
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(
        *(Panel(Text(answers[arm]), title=arm, title_align="left") for arm in ("dense", "patched")),
    )
    same = "the same" if answers["dense"] == answers["patched"] else "not the same"
    kept = answers["kept"]["kept_share"]
    share = "-" if kept is None else f"{100 * kept:.1f} %"
    return Group(table, Text(f"{same}; KL {answers['kl']:.4f} nats per token; {share} of attention elements kept"))


def methods_report() -> Table:
    """One line and the paper for each method."""
    table = Table(box=None)
    for column in ("method", "what it does", "paper"):
        table.add_column(column)
    for name, method in METHODS.items():
        table.add_row(name, method.summary, method.paper)
    return table
