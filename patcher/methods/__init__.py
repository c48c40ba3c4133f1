"""The sparse methods: one file each, a frozen dataclass and pure tensor functions, no transformers."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from ...errors import UsageError
from . import asking
from .budget import Budget, budget_of
from .chunk import AttentionInputs, Chunk, RowCounts
from .clustered import Clustered, ClusteredPlain
from .rows import attend_rows
from .top_k import TopK
from .top_k_feed_forward import TopKFeedForward
from .top_theta import TopTheta
from .visibility import FullMask, RowRanges, Visibility

AttentionMethod = TopK | TopTheta | Clustered | ClusteredPlain
Method = AttentionMethod | TopKFeedForward

# Whoever adds a method adds its class here; the command line and the recipe know it by its name.
ATTENTION_METHODS: dict[str, type[AttentionMethod]] = {
    method.name: method for method in (TopK, TopTheta, Clustered, ClusteredPlain)
}
METHODS: dict[str, type[Method]] = {**ATTENTION_METHODS, TopKFeedForward.name: TopKFeedForward}


def exact_top_k(method: Method) -> Method:
    """Exact top-k with the budget of a method; a method without a budget of keys as it is."""
    return TopK(**budget_of(method)) if isinstance(method, Budget) else method


def method_from_dict(data: dict[str, Any]) -> Method:
    """A method from its recipe entry, `{"method": name, field: value, ...}`; UsageError names what does not fit."""
    name = data.get("method")
    if not isinstance(name, str) or name not in METHODS:
        raise UsageError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    options = {key: value for key, value in data.items() if key != "method"}
    known = {field.name for field in fields(METHODS[name])}
    if unknown := sorted(set(options) - known):
        raise UsageError(f"method {name} has no option {unknown[0]!r}: it has {', '.join(sorted(known))}")
    return METHODS[name](**options)


def method_to_dict(method: Method) -> dict[str, Any]:
    """The recipe entry of a method: its name and every field that is not None."""
    return {"method": method.name, **{key: value for key, value in asdict(method).items() if value is not None}}


__all__ = [
    "ATTENTION_METHODS",
    "METHODS",
    "AttentionInputs",
    "AttentionMethod",
    "Chunk",
    "Clustered",
    "ClusteredPlain",
    "FullMask",
    "Method",
    "RowCounts",
    "RowRanges",
    "TopK",
    "TopKFeedForward",
    "TopTheta",
    "Visibility",
    "asking",
    "attend_rows",
    "exact_top_k",
    "method_from_dict",
    "method_to_dict",
]
