"""What patch, calibrate, generate and methods print."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import AttentionModule, attention_modules
from ..patcher.methods import METHODS
from ..patcher.proof import Check
from ..patcher.recipe import DEFAULT_RECIPE
from ..tables import facts, grid, percent, titled
from .calibrate import Calibrated
from .patch import Planned

GENERATING = ("causal-lm", "seq2seq-lm")


def patch_report(planned: Planned, loaded: LoadedModel, checks: list[Check], written: Path | None) -> RenderableType:
    """The plan by kind of module, the proof, and where the recipe went."""
    parts: list[RenderableType] = [_plan_table(planned, loaded), ""]
    if planned.unreachable:
        names = ", ".join(planned.unreachable)
        parts.append(Text(f"stays dense, it computes attention outside the interface: {names}", style="yellow"))
    if any(method.needs_thresholds for method in planned.recipe.plan.values()):
        parts.append("not calibrated yet: every row uses its own exact top-k until `sparsify calibrate`")
    if checks:
        parts += [
            titled("Proof of patch", grid(["", "check", "relative difference"], _check_rows(checks), text_columns=2)),
            "",
        ]
    parts.append("dry run: nothing was written" if written is None else f"wrote {written}{_next(planned, written)}")
    return Group(*parts)


def _next(planned: Planned, written: Path) -> str:
    """What to type next; a model that writes no text can be neither calibrated nor evaluated on questions."""
    return f"; next: {_command('calibrate', written)}" if planned.recipe.base_model.task in GENERATING else ""


def _command(name: str, recipe: Path) -> str:
    return f"sparsify {name}" if recipe == Path(DEFAULT_RECIPE) else f"sparsify {name} {shlex.quote(str(recipe))}"


def _plan_table(planned: Planned, loaded: LoadedModel) -> RenderableType:
    base, plan = planned.recipe.base_model, planned.recipe.plan
    groups: dict[str, list[AttentionModule]] = {}
    for module in attention_modules(loaded.model):
        groups.setdefault(f"{module.stack} {module.kind}", []).append(module)
    rows = []
    for group, members in groups.items():
        chosen = [module for module in members if module.name in plan]
        methods = dict.fromkeys(f"{plan[module.name].name}, {plan[module.name].describe()}" for module in chosen)
        layers = _ranges([module.layer for module in chosen if module.layer is not None])
        rows.append(
            [group, "; ".join(methods) or "-", layers or "-", str(len(chosen)), str(len(members) - len(chosen))]
        )
    header = ["attention", "method", "layers", "modules", "left dense"]
    return titled(f"{Path(base.id).name}: {base.model_type}, {base.task}", grid(header, rows, text_columns=3))


def _check_rows(checks: list[Check]) -> list[list[str]]:
    return [
        ["ok" if check.passed else "FAILED", check.name, "" if check.error is None else f"{check.error:.1e}"]
        for check in checks
    ]


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
    title = "" if record is None else f"Calibrated on {record.samples} questions of {record.dataset}, {record.budget}"
    shortest, longest = min(t.shortest for t in tables.values()), max(t.longest for t in tables.values())
    rows = [
        ("modules with thresholds", f"{len(tables)} of {len(recipe.plan)}"),
        (
            "thresholds",
            f"{sum(t.theta.numel() for t in tables.values())} for {sum(t.heads for t in tables.values())} query heads",
        ),
        ("row lengths covered", f"{shortest} to {longest} keys; other rows use their own exact top-k"),
    ]
    if names := calibrated.without_thresholds:
        rows.append(("rows never longer than k", f"{len(names)} modules, e.g. {names[0]}: dense on such data"))
    return Group(titled(title, facts(rows)), "", f"wrote {directory}; next: {_command('eval', directory)}")


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
    facts_line = f"{same}; KL {answers['kl']:.4f} nats per token; {percent(kept)} of attention elements kept"
    return Group(table, facts_line)


def methods_report() -> RenderableType:
    """One line and the paper for each method."""
    rows = [[name, method.summary, method.paper] for name, method in METHODS.items()]
    return grid(["method", "what it does", "paper"], rows, text_columns=3)
