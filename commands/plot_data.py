"""From a recipe, its results and its model to the data of charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.check import measure_kept
from ..charts.kept import KeptHeads, LayerShare
from ..charts.pattern import HeadPattern
from ..charts.thresholds import ThresholdCurves
from ..evaluation.journal import RESULTS, ended_run
from ..evaluation.of_recipe import evaluated
from ..patcher.binding.patchable import PatchableModule, patchable_modules
from ..patcher.pattern import Pattern
from ..patcher.recipe import Recipe
from ..tables import percent
from .plot_inputs import Read
from .target import Target


@dataclass(frozen=True)
class Kept:
    """What modules kept, by name as in results.json ("kept", "modules"), and where that was counted, in words."""

    modules: Mapping[str, Mapping[str, Any]]
    source: str


def planned_modules(target: Target) -> dict[str, PatchableModule]:
    """The modules of a recipe, in module order."""
    plan = target.recipe.plan
    return {name: module for name, module in patchable_modules(target.loaded.model, plan).items() if name in plan}


def group_of(module: PatchableModule) -> str:
    """'decoder self', 'encoder feed-forward'."""
    return f"{module.stack} {module.kind}"


def layer_of(module: PatchableModule) -> str:
    """A module's layer; its name where it has none."""
    return module.name if module.layer is None else str(module.layer)


def threshold_curves(recipe: Recipe, modules: Mapping[str, PatchableModule]) -> dict[str, list[ThresholdCurves]]:
    """The thresholds of a recipe by placement, in module order."""
    tables = {name: recipe.thresholds[name] for name in modules if name in recipe.thresholds}
    several = len({group_of(modules[name]) for name in tables}) > 1
    found: dict[str, list[ThresholdCurves]] = {}
    for name, table in tables.items():
        module = modules[name]
        label = f"{group_of(module)} {layer_of(module)}" if several else f"layer {layer_of(module)}"
        curves = ThresholdCurves(
            label, table.lengths.tolist(), table.theta.tolist(), table.shortest, table.longest, table.placement
        )
        found.setdefault(table.placement, []).append(curves)
    return found


def newest_kept(recipe: Recipe, directory: Path) -> Kept | None:
    """What the newest evaluation of just this recipe counted; None if there is none that tells heads apart."""
    for path in sorted(directory.glob(f"eval/*/{RESULTS}"), key=lambda path: path.stat().st_mtime, reverse=True):
        results = ended_run(path.parent)
        if results is None or not evaluated(recipe, results):
            continue
        modules = results["kept"]["modules"]
        if all("heads" in counts for counts in modules.values()):
            return Kept(modules, str(path.relative_to(directory)))
    return None


def measured_kept(target: Target, read: Read) -> Kept:
    """What the recipe keeps on inputs, counted now."""
    recipe = target.recipe
    meter = measure_kept(target.loaded.model, recipe.plan, recipe.thresholds, read.inputs)
    return Kept(meter.summary()["modules"], f"measured on {read.all}")


def kept_heads(kept: Kept, modules: Mapping[str, PatchableModule]) -> list[KeptHeads]:
    """The heads of the modules that have long rows."""
    return [
        KeptHeads(group_of(module), layer_of(module), counts["heads"])
        for name, module in modules.items()
        if (counts := kept.modules.get(name)) and counts["heads"] is not None
    ]


def shares(kept: Kept, modules: Mapping[str, PatchableModule], name_of_share: str) -> list[LayerShare]:
    """A share of the counts of each module that has it: "activations_kept_share" or "cluster_scores_share"."""
    return [
        LayerShare(group_of(module), layer_of(module), share)
        for name, module in modules.items()
        if (share := kept.modules.get(name, {}).get(name_of_share)) is not None
    ]


def chosen_heads(pattern: Pattern) -> list[int]:
    """The heads that keep the smallest and the largest share; where all keep the same, those that agree least and most
    with the dense model."""
    order = sorted(zip(pattern.kept_shares(), pattern.overlaps(), range(len(pattern.overlaps())), strict=True))
    return list(dict.fromkeys([order[0][2], order[-1][2]]))


def said_of_head(pattern: Pattern, head: int) -> str:
    """What a head keeps, or where its weight is if it drops no key."""
    share, overlap = percent(pattern.kept_shares()[head]), percent(pattern.overlaps()[head])
    keeps = f"keeps {share} of the keys, " if bool((pattern.patched.visible & ~pattern.patched.kept).any()) else ""
    return f"head {head}: {keeps}{overlap} of its weight is where the dense model has it"


def head_patterns(pattern: Pattern, heads: Sequence[int]) -> list[HeadPattern]:
    """The tables of some heads."""
    dense, patched = pattern.dense, pattern.patched
    return [
        HeadPattern(
            said_of_head(pattern, head),
            dense.weights[head].tolist(),
            patched.weights[head].tolist(),
            patched.visible[head].tolist(),
            patched.kept[head].tolist(),
            patched.protected[head].tolist(),
        )
        for head in heads
    ]
