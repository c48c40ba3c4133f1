"""What patch, validate, calibrate, generate and methods print."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..evaluation.datasets import datasets_rows
from ..evaluation.report import called, comparison, modules_table, results_tables
from ..patcher.binding.feed_forward import feed_forward_modules
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import ACCURACY_ONLY, attention_modules, interception_of
from ..patcher.binding.patchable import PatchableModule
from ..patcher.binding.tasks import TRANSCRIBING, WITHOUT_TEXT
from ..patcher.checks import Check
from ..patcher.methods import METHODS
from ..patcher.methods.budget import Budget
from ..patcher.preset import ranges
from ..patcher.recipe import DEFAULT_RECIPE, Recipe
from ..tables import facts, grid, percent, titled
from .calibrate import Calibrated
from .evaluate import Outcome
from .patch import Planned
from .target import Target

INTERCEPTED = (
    "Where a model computes attention itself, outside the transformers attention interface, attention methods select "
    f"the same keys ({ACCURACY_ONLY}) and make nothing faster."
)


def patch_report(planned: Planned, loaded: LoadedModel, checks: list[Check], written: Path | None) -> RenderableType:
    """The plan by kind of module, the proof, and where the recipe went."""
    parts: list[RenderableType] = [_plan_table(planned.recipe, loaded), "", *_interception(planned.recipe, loaded)]
    if planned.unreachable:
        names = ", ".join(planned.unreachable)
        parts.append(Text(f"stays dense, its attention can be reached by no route: {names}", style="yellow"))
    parts += planned.notes
    calibrated = planned.recipe.calibration is not None
    if not calibrated and any(method.needs_thresholds for method in planned.recipe.plan.values()):
        parts.append("not calibrated yet: every row uses its own exact top-k until `sparsify calibrate`")
    parts += _proof(checks)
    if written is None:
        parts.append("dry run: nothing was written")
    else:
        takes_thresholds = any(isinstance(method, Budget) for method in planned.recipe.plan.values()) and not calibrated
        if loaded.base.task in WITHOUT_TEXT - TRANSCRIBING:
            parts.append(f"wrote {written}; calibrate and eval have no data for a model that does not read text alone")
        else:
            following = _following("calibrate" if takes_thresholds else "eval", planned.recipe, written)
            parts.append(f"wrote {written}; next: {following}")
    return Group(*parts)


def validation_report(target: Target, checks: list[Check]) -> RenderableType:
    """The plan, the proof, and the verdict."""
    recipe = target.recipe
    record = recipe.calibration
    calibrated = f"; calibrated on {record.samples} items of {record.dataset}, {record.budget}" if record else ""
    verdict = f"the recipe in {target.name} is valid{calibrated}"
    said = _interception(recipe, target.loaded)
    return Group(_plan_table(recipe, target.loaded), "", *said, *_proof(checks), verdict)


def _interception(recipe: Recipe, loaded: LoadedModel) -> list[RenderableType]:
    return _note(interception_of(loaded.model, recipe.plan))


def _note(interception: dict[str, Any] | None) -> list[RenderableType]:
    return [Text(interception["note"], style="yellow")] if interception else []


def _proof(checks: list[Check]) -> list[RenderableType]:
    if not checks:
        return []
    return [
        titled("Proof of patch", grid(["", "check", "relative difference"], _check_rows(checks), text_columns=2)),
        "",
    ]


def _following(name: str, recipe: Recipe, directory: Path) -> str:
    """The command that comes next; for models of speech there are no recordings to go by default."""
    command = _command(name, directory)
    return f"{command} --dataset RECORDINGS" if recipe.base_model.task in TRANSCRIBING else command


def _command(name: str, recipe: Path) -> str:
    return f"sparsify {name}" if recipe == Path(DEFAULT_RECIPE) else f"sparsify {name} {shlex.quote(str(recipe))}"


def _plan_table(recipe: Recipe, loaded: LoadedModel) -> RenderableType:
    base, plan = recipe.base_model, recipe.plan
    groups: dict[str, list[PatchableModule]] = {}
    for module in attention_modules(loaded.model):
        groups.setdefault(f"{module.stack} {module.kind}", []).append(module)
    for layer in feed_forward_modules(loaded.model):
        size = f", d_ff {layer.d_ff}" if layer.d_ff else ""
        groups.setdefault(f"{layer.stack} {layer.kind}{size}", []).append(layer)
    rows = []
    for group, members in groups.items():
        chosen = [module for module in members if module.name in plan]
        methods = dict.fromkeys(f"{plan[module.name].name}, {plan[module.name].describe()}" for module in chosen)
        layers = ranges([module.layer for module in chosen if module.layer is not None])
        rows.append(
            [group, "; ".join(methods) or "-", layers or "-", str(len(chosen)), str(len(members) - len(chosen))]
        )
    header = ["modules of", "method", "layers", "modules", "left dense"]
    return titled(f"{Path(base.id).name}: {base.model_type}, {base.task}", grid(header, rows, text_columns=3))


def _check_rows(checks: list[Check]) -> list[list[str]]:
    return [[_state(check), _said(check), "" if check.error is None else f"{check.error:.1e}"] for check in checks]


def _state(check: Check) -> str:
    if check.skipped is not None:
        return "-"
    return "ok" if check.passed else "FAILED"


def _said(check: Check) -> str:
    return check.name if check.skipped is None else f"{check.name}: not checked, {check.skipped}"


def calibration_report(calibrated: Calibrated, directory: Path) -> RenderableType:
    """What was fitted, what has no threshold, and what was kept afterwards."""
    recipe, tables = calibrated.recipe, calibrated.recipe.thresholds
    record = recipe.calibration
    title = "" if record is None else f"Calibrated on {record.samples} items of {record.dataset}, {record.budget}"
    shortest, longest = min(t.shortest for t in tables.values()), max(t.longest for t in tables.values())
    rows = [
        ("modules with thresholds", f"{len(tables)} of {len(tables) + len(calibrated.without_thresholds)}"),
        (
            "thresholds",
            f"{sum(t.theta.numel() for t in tables.values())} for {sum(t.heads for t in tables.values())} query heads",
        ),
        ("row lengths covered", f"{shortest} to {longest} keys; other rows use their own exact top-k"),
    ]
    if record is not None:
        alpha = f", alpha = {record.alpha:g}" if record.estimator == "mean" else ""
        rows.append(("fitted", f"{record.estimator}{alpha}, {record.placement}, {record.activations} activations"))
    if names := calibrated.without_thresholds:
        rows.append(("rows never longer than k", f"{len(names)} modules, e.g. {names[0]}: dense on such data"))
    said = _note(calibrated.interception)
    return Group(
        titled(title, facts(rows)),
        "",
        _kept_table(calibrated),
        "",
        *said,
        f"wrote {directory}; next: {_following('eval', recipe, directory)}",
    )


def _kept_table(calibrated: Calibrated) -> RenderableType:
    """What rows longer than k keep per module, and in all."""
    kept, columns = calibrated.kept, ["kept_per_k", "kept_per_k_p5", "kept_per_k_p95"]
    modules = {name: meter for name, meter in kept.modules.items() if name in calibrated.recipe.thresholds}
    rows = []
    for name, meter in [*modules.items(), ("all", kept.total())]:
        summary = meter.summary()
        shares = ["-" if summary[column] is None else f"{summary[column]:.2f}" for column in columns]
        counts = [str(summary[column]) for column in ("rows_saved_by_min_keep", "rows_without_threshold", "long_rows")]
        rows.append([name, *shares, *counts])
    which = "other items" if calibrated.held_out else "of these items, for want of others"
    title = f"Kept / k on {calibrated.checked} {which}, in rows longer than k"
    return titled(title, grid(["module", "mean", "p5", "p95", "min-keep", "outside the table", "rows"], rows))


def evaluation_report(outcomes: Sequence[Outcome], by_module: bool = False) -> RenderableType:
    """The tables of one recipe; of several their verdicts side by side, and then what each module kept if asked for."""
    all_results = [outcome.results for outcome in outcomes]
    if len(all_results) == 1:
        return results_tables(all_results[0], by_module=by_module, was_there=outcomes[0].was_there)
    parts: list[RenderableType] = [comparison(all_results)]
    for results in all_results if by_module else ():
        parts += ["", Text(called(results), style="bold"), modules_table(results)]
    return Group(*parts)


def answers_report(answers: dict[str, Any]) -> RenderableType:
    """Two answers side by side."""
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(
        *(Panel(Text(answers[arm]), title=arm, title_align="left") for arm in ("dense", "patched")),
    )
    same = "the same" if answers["dense"] == answers["patched"] else "not the same"
    facts_line = f"{same}; KL {answers['kl']:.4f} nats per token"
    for key, what in (("kept_share", "attention elements"), ("activations_kept_share", "feed-forward activations")):
        if answers["kept"][key] is not None:
            facts_line += f"; {percent(answers['kept'][key])} of {what} kept"
    return Group(table, facts_line, *_note(answers["interception"]))


def datasets_report() -> RenderableType:
    """One line for each data set."""
    header = ["name", "task", "metric", "on the Hub", "what it is"]
    return grid(header, datasets_rows(), text_columns=len(header))


def methods_report() -> RenderableType:
    """One line and the paper for each method."""
    rows = [[name, method.summary, method.paper] for name, method in METHODS.items()]
    return Group(grid(["method", "what it does", "paper"], rows, text_columns=3), "", INTERCEPTED)
