"""`sparsify inspect`: from a configuration alone, what of a model can be patched, and whether it can matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..benchmark.shares import Shares
from ..benchmark.workload import DECODE
from ..errors import NotPatchableError, UsageError
from ..evaluation.demo import DEMO_MODELS
from ..evaluation.inputs import position_limit
from ..inspection.facts import AttentionFacts, FeedForwardFacts, attention_facts, feed_forward_facts
from ..inspection.flops import Work, count, fixed_length, why_not
from ..inspection.sentences import sentences
from ..inspection.skeleton import Skeleton, load_skeleton
from ..patcher.binding.feed_forward import require_feed_forward_modules
from ..patcher.binding.loading import LoadOptions, options_for
from ..patcher.binding.modules import interception_of, require_attention_modules, unreachable_attention
from ..patcher.dtypes import dtype_name
from ..patcher.recipe import Recipe, load_recipe
from .bench import parse_lengths
from .recipe_source import find_recipe
from .target import check_same_shape, folder_of

SCHEMA_VERSION = 1
DEFAULT_LENGTHS = (512, 4096, 32768)
NOT_PATCHABLE = NotPatchableError.exit_code


@dataclass(frozen=True)
class Inspected:
    """A model without weights, the recipe for it if one was named, and that one's name."""

    skeleton: Skeleton
    recipe: Recipe | None = None
    recipe_name: str | None = None


def check_lengths(text: str | None) -> tuple[int, ...]:
    """The lengths as they are typed, ascending, or the default ones. UsageError as parse_lengths."""
    return parse_lengths(text) or DEFAULT_LENGTHS


def open_skeleton(argument: str, options: LoadOptions, *, model: str | None = None) -> Inspected:
    """A model by Hub name, folder or demo name, or a recipe's base model. model: where the latter is now.

    Raises what load_skeleton raises, and RecipeMismatchError for a recipe made for another model.
    """
    found = find_recipe(argument)
    if found is None:
        if model is not None:
            raise UsageError(f"--model goes with a recipe, and {argument} holds none")
        return Inspected(_named(argument, options))
    recipe = load_recipe(found.directory)
    source, made_for = found.base_model(recipe.base_model, model)
    skeleton = _named(source, options_for(made_for, options))
    check_same_shape(recipe.base_model, skeleton.base)
    return Inspected(skeleton, recipe, argument)


def _named(name: str, options: LoadOptions) -> Skeleton:
    skeleton = load_skeleton(folder_of(name), options)
    return replace(skeleton, base=replace(skeleton.base, id=name)) if name in DEMO_MODELS else skeleton


def inspect(opened: Inspected, lengths: tuple[int, ...]) -> dict[str, Any]:
    """All that is found, as JSON has it. lengths: ascending."""
    skeleton, plan = opened.skeleton, opened.recipe.plan if opened.recipe else None
    model = skeleton.model
    attention, feed_forward, refused = _modules(skeleton)
    facts = [*attention, *feed_forward]
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": Path(skeleton.base.id).name,
        "base_model": asdict(skeleton.base),
        "class": type(model).__name__,
        "recipe": opened.recipe_name,
        "loaded_by_commands": skeleton.loads,
        "parameters": model.num_parameters(),
        "dtype": dtype_name(skeleton.dtype),
        "quantized": getattr(model.config, "quantization_config", None) is not None,
        "positions": _positions(model),
        "attention": [asdict(found) | _planned(found, plan) for found in attention],
        "feed_forward": [asdict(found) | _planned(found, plan) for found in feed_forward],
        "not_patchable": refused,
    }
    patched = {found.name for found in attention} if plan is None else set(plan)
    results["interception"] = interception_of(model, patched)
    if results["interception"] is not None:
        patched -= set(results["interception"]["modules"])  # no time is saved there
    works, reason = _count(skeleton, lengths)
    results["not_counted"] = reason
    results["lengths"] = [
        {
            "tokens": length,
            "beyond_positions": results["positions"] is not None and length > results["positions"],
            "phases": {phase: _phase(phase, work, patched, skeleton) for phase, work in phases.items()},
        }
        for length, phases in works.items()
    ]
    results["patchable"] = bool(facts)
    results["sentences"] = sentences(results)
    return results


def _positions(model: Any) -> int | None:
    """position_limit, without the negative number by which some families mean none."""
    limit = position_limit(model)
    return limit if limit is not None and limit > 0 else None


def exit_code(results: dict[str, Any]) -> int:
    """0, or that of NotPatchableError if nothing of the model can be patched."""
    return 0 if results["patchable"] else NOT_PATCHABLE


def _modules(skeleton: Skeleton) -> tuple[list[AttentionFacts], list[FeedForwardFacts], list[str]]:
    """What can be patched, and in a sentence each what cannot."""
    model, refused = skeleton.model, []
    attention: list[AttentionFacts] = []
    feed_forward: list[FeedForwardFacts] = []
    try:
        attention = [attention_facts(target) for target in require_attention_modules(model)]
        if others := unreachable_attention(model):
            what = "computes attention in a way that cannot be intercepted, and stays dense"
            refused.append(f"{', '.join(others)} {what}")
    except NotPatchableError as error:
        refused.append(str(error))
    try:
        feed_forward = [feed_forward_facts(model, layer) for layer in require_feed_forward_modules(model)]
    except NotPatchableError as error:
        refused.append(str(error))
    return attention, feed_forward, refused


def _planned(found: AttentionFacts | FeedForwardFacts, plan: Mapping[str, Any] | None) -> dict[str, str | None]:
    """What a recipe does with a module."""
    if plan is None:
        return {}
    method = plan.get(found.name)
    return {"planned": None if method is None else f"{method.name}, {method.describe()}"}


def _count(skeleton: Skeleton, lengths: tuple[int, ...]) -> tuple[dict[int, dict[str, Work]], str | None]:
    """The work at every length, or why it is not counted."""
    if (reason := why_not(skeleton.model)) is not None:
        return {}, f"the work is not counted: {reason}"
    fixed = fixed_length(skeleton.model)
    lengths = lengths if fixed is None else (fixed,)
    try:
        model = skeleton.with_positions(lengths[-1] + 1) if fixed is None else skeleton.model
        return {length: count(model, length) for length in lengths}, None
    except Exception as error:  # a family's own code, which may want inputs or values that there are none of
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            {},
            f"the work is not counted: {type(skeleton.model).__name__} does not run on tokens alone here ({first})",
        )


def _phase(phase: str, work: Work, patched: set[str], skeleton: Skeleton) -> dict[str, Any]:
    """FLOPs and shares of them. A decoding step waits for memory, so that its ceiling is of the bytes it reads."""
    attention, feed_forward = sum(work.attention.values()), sum(work.feed_forward.values())
    in_attention = sum(flops for name, flops in work.attention.items() if name in patched)
    in_layers = sum(flops for name, flops in work.feed_forward.items() if name in patched)
    shares = Shares(attention / work.total, feed_forward / work.total, (in_attention + in_layers) / work.total)
    found: dict[str, Any] = {"flops": work.total, "shares": asdict(shares), "ceiling": shares.ceiling}
    if phase != DECODE:
        return found
    read = _read(work, in_attention, in_layers, skeleton.dtype)
    sizes = {"weight_bytes": work.weight_bytes(skeleton.dtype), "cache_bytes": work.cache_bytes}
    return found | sizes | {"shares_read": asdict(read), "ceiling": read.ceiling}


def _read(work: Work, in_attention: int, in_layers: int, dtype: torch.dtype) -> Shares:
    """Shares of the bytes that a step reads. in_attention, in_layers: FLOPs of what is patched."""
    total = work.weight_bytes(dtype) + work.cache_bytes
    attention, feed_forward = sum(work.attention.values()), sum(work.feed_forward.values())
    # Each weight is multiplied once, and the caches of the modules are in proportion to their products.
    cache = work.cache_bytes * in_attention / attention if attention else 0
    size = dtype.itemsize / 2
    return Shares(work.cache_bytes / total, feed_forward * size / total, (cache + in_layers * size) / total)
