"""`sparsify plot`: thresholds, what was kept, and the attention pattern of one input, as image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..charts.files import save_png, to_svg
from ..charts.kept import KeptHeads, kept_chart, kept_rows, share_chart
from ..charts.pattern import pattern_chart
from ..charts.thresholds import ThresholdCurves, thresholds_chart, thresholds_rows
from ..errors import SparsifyError, UsageError
from ..files import cannot_write, write_file
from ..patcher.binding.modules import AttentionModule
from ..patcher.binding.patchable import PatchableModule
from ..patcher.pattern import attention_patterns
from ..patcher.plan import describe_plan
from ..patcher.preset import ranges
from ..patcher.recipe import check_place
from ..tables import percent
from .plot_data import (
    Kept,
    chosen_heads,
    group_of,
    head_patterns,
    kept_heads,
    layer_of,
    measured_kept,
    newest_kept,
    planned_modules,
    said_of_head,
    shares,
    threshold_curves,
)
from .plot_inputs import Read, check_prompt, token_texts
from .recipe_source import find_recipe
from .target import DEFAULT_RECIPE, Target

FORMATS = ("png", "svg")
NO_THRESHOLDS = "no plot of thresholds: the recipe has none; `sparsify calibrate` fits them"
NOTHING_LONG = "no plot of what heads keep: no row saw more keys than its k, so that nothing was sparse"

# What modules without heads keep: file, share in results.json, what the axis says, what the title says.
_SHARES = (
    ("activations", "activations_kept_share", "kept share of activations", "Activations kept"),
    ("clusters", "cluster_scores_share", "scores computed / dense scores", "Attention scores computed"),
)


@dataclass(frozen=True)
class PlotOptions:
    """What is drawn; `sparsify plot --help` explains each. UsageError for what is wrong whatever the recipe is."""

    prompt: str | None = None
    layer: int | None = None
    head: int | None = None
    format: str = "png"

    def __post_init__(self) -> None:
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.format not in FORMATS:
            raise UsageError(f"--format must be {' or '.join(FORMATS)}, not {self.format!r}")
        for name in ("layer", "head"):
            if (getattr(self, name) or 0) < 0:
                raise UsageError(f"--{name} must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class Drawing:
    """A chart, the file's name without its ending, and what is to be seen, in one sentence."""

    name: str
    chart: Any
    sentence: str


def check_target(argument: str | None, output: Path | None) -> None:
    """Before anything is loaded: UsageError for what is no recipe, SparsifyError for a place that takes no files."""
    if argument is not None and find_recipe(argument) is None:
        raise UsageError(f"{argument} holds no recipe: make one with `sparsify patch MODEL`")
    place = output if output is not None else Path(argument or DEFAULT_RECIPE)
    check_place(place, "plots")


def plot_target(
    target: Target, read: Read, options: PlotOptions, *, given: bool, tell: Callable[[str], None]
) -> list[Drawing]:
    """Everything that there is to draw of a recipe.

    given: a person named what is read, so that what is kept is measured on it and not taken from results. tell: what
    could not be drawn. UsageError for a layer or a head that is not there, SparsifyError if there is nothing to draw.
    """
    modules = planned_modules(target)
    # What may be refused comes first.
    patterns = list(_patterns(target, _chosen_modules(modules, options.layer), read, options))
    drawings = list(_thresholds(target, modules))
    if not drawings:
        tell(NO_THRESHOLDS)
    kept = None if given or target.directory is None else newest_kept(target.recipe, target.directory)
    drawings += _kept(target, modules, kept or measured_kept(target, read), tell)
    drawings += patterns
    if not drawings:
        raise SparsifyError(f"there is nothing to draw of {target.name}: none of its modules was called")
    return drawings


def write(drawings: list[Drawing], directory: Path, kind: str) -> list[Path]:
    """Writes the charts, over older ones. SparsifyError if that fails."""
    paths = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            path = directory / f"{drawing.name}.{kind}"
            if kind == "svg":
                write_file(path, to_svg(drawing.chart).encode())
            else:
                save_png(drawing.chart, path)
            paths.append(path)
    except OSError as error:
        raise cannot_write("plots", directory, error) from None
    return paths


def place_of(target: Target, output: Path | None) -> Path:
    """RECIPE/plots, or ./sparsified-plots for a recipe on the Hub."""
    if output is not None:
        return output
    return target.directory / "plots" if target.directory else Path("sparsified-plots")


def _thresholds(target: Target, modules: dict[str, PatchableModule]) -> Iterator[Drawing]:
    found = threshold_curves(target.recipe, modules)
    for placement, curves in found.items():
        name = "thresholds" if len(found) == 1 else f"thresholds-{placement}"
        title = f"Thresholds of {_model(target)}"
        chart = thresholds_chart(curves, title, describe_plan(target.recipe.plan))
        yield Drawing(name, chart, _of_thresholds(curves))


def _of_thresholds(curves: list[ThresholdCurves]) -> str:
    means = [row["mean"] for row in thresholds_rows(curves)]
    shortest, longest = min(curve.shortest for curve in curves), max(curve.longest for curve in curves)
    what = "weights above which keys are kept" if curves[0].placement == "post-softmax" else "thresholds"
    count = f"{len(curves)} module{'s' * (len(curves) > 1)}"
    return (
        f"{what} in {count}, for rows of {shortest:,} to {longest:,} keys: means over heads from {min(means):.3g} to "
        f"{max(means):.3g}"
    )


def _kept(
    target: Target, modules: dict[str, PatchableModule], kept: Kept, tell: Callable[[str], None]
) -> Iterator[Drawing]:
    heads, plan = kept_heads(kept, modules), describe_plan(target.recipe.plan)
    if heads:
        lines = [plan, f"of rows that see more keys than their k; {kept.source}"]
        chart = kept_chart(heads, f"Kept share per head of {_model(target)}", lines)
        yield Drawing("kept", chart, f"{_of_heads(heads)} ({kept.source})")
    for name, key, axis, heading in _SHARES:
        if layers := shares(kept, modules, key):
            chart = share_chart(layers, f"{heading} in {_model(target)}", [plan, kept.source], axis)
            ends = dict.fromkeys(percent(choose(layer.share for layer in layers)) for choose in (min, max))
            yield Drawing(name, chart, f"{axis}: {' to '.join(ends)} over {len(layers)} modules ({kept.source})")
    if not heads and any(counts.get("rows") for counts in kept.modules.values()):
        tell(NOTHING_LONG)


def _of_heads(heads: list[KeptHeads]) -> str:
    rows = sorted(kept_rows(heads), key=lambda row: row["share"])
    least, most = (f"{percent(row['share'])} ({_named(row)})" for row in (rows[0], rows[-1]))
    if rows[0]["share"] == rows[-1]["share"]:
        return f"all {len(rows)} heads keep {percent(rows[0]['share'])} of what their long rows see"
    return f"of what their long rows see, heads keep from {least} to {most}"


def _named(row: dict[str, Any]) -> str:
    return f"{row['group']} {row['layer']}, head {row['head']}"


def _patterns(
    target: Target, chosen: dict[str, AttentionModule], read: Read, options: PlotOptions
) -> Iterator[Drawing]:
    recipe, inputs = target.recipe, read.inputs[0]
    found = attention_patterns(target.loaded.model, recipe.plan, recipe.thresholds, inputs, list(chosen))
    for name, pattern in found.items():
        module = chosen[name]
        shape = pattern.patched.weights.shape
        if shape[1:] == (1, 1):
            continue  # one token that looks at itself
        heads = chosen_heads(pattern) if options.head is None else [_checked_head(options.head, shape[0], name)]
        where = f"{group_of(module)} layer {layer_of(module)}"
        chart = pattern_chart(
            head_patterns(pattern, heads),
            f"Attention weights of {_model(target)}, {where}, {read.first}",
            token_texts(target.loaded.tokenizer, inputs, module.stack, shape[1]),
            token_texts(target.loaded.tokenizer, inputs, _stack_of_keys(module), shape[2]),
        )
        file = "pattern" if len(chosen) == 1 else f"pattern-{module.stack}-{module.kind}"
        said = "; ".join(said_of_head(pattern, head) for head in heads)
        yield Drawing(file, chart, f"{where}, {said}")


def _chosen_modules(modules: dict[str, PatchableModule], layer: int | None) -> dict[str, AttentionModule]:
    """Of each group of attention the module in the layer that is asked for, or the middle one. UsageError if no group
    has that layer."""
    groups: dict[str, list[AttentionModule]] = {}
    for module in modules.values():
        if isinstance(module, AttentionModule):
            groups.setdefault(group_of(module), []).append(module)
    if layer is None:
        return {middle.name: middle for members in groups.values() for middle in [members[len(members) // 2]]}
    found = {module.name: module for members in groups.values() for module in members if module.layer == layer}
    if not found:
        numbers = {module.layer for members in groups.values() for module in members if module.layer is not None}
        there = f"it patches that of layers {ranges(numbers)}" if numbers else "it patches none that is numbered"
        raise UsageError(f"the recipe patches no attention in layer {layer}: {there}")
    return found


def _checked_head(head: int, heads: int, name: str) -> int:
    if head >= heads:
        raise UsageError(f"{name} has no head {head}: it has heads 0-{heads - 1}")
    return head


def _stack_of_keys(module: AttentionModule) -> str:
    return "encoder" if module.kind == "cross" else module.stack


def _model(target: Target) -> str:
    return Path(target.recipe.base_model.id).name
