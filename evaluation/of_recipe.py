"""Whether a run measured a recipe as it is now, or as it was before it was changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..patcher.methods import method_to_dict
from ..patcher.recipe import Recipe


def evaluated(recipe: Recipe, results: Mapping[str, Any]) -> bool:
    """Whether results.json is of just this plan and this calibration."""
    calibration = recipe.to_dict()["calibration"]
    # results.json has a calibration without its items.
    known = calibration and {key: value for key, value in calibration.items() if key != "items"}
    return results.get("plan") == _plan(recipe) and results.get("calibration") == known


def timed(recipe: Recipe, results: Mapping[str, Any]) -> bool:
    """Whether bench.json is of this plan, whatever its min_length: a benchmark may have been what set it."""
    found = results.get("plan")
    known = isinstance(found, dict) and all(isinstance(method, dict) for method in found.values())
    return known and _at_any_length(found or {}) == _at_any_length(_plan(recipe))


def _plan(recipe: Recipe) -> dict[str, Any]:
    return {name: method_to_dict(method) for name, method in recipe.plan.items()}


def _at_any_length(plan: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: {key: of for key, of in method.items() if key != "min_length"} for name, method in plan.items()}
