"""What follows from the counts, in words."""

from __future__ import annotations

from typing import Any

from ..benchmark.workload import DECODE
from ..tables import percent


def sentences(results: dict[str, Any]) -> list[str]:
    """One for each phase at the longest length that the model has positions for."""
    fitting = [entry for entry in results["lengths"] if not entry["beyond_positions"]] or results["lengths"]
    if not fitting:
        return []
    entry = fitting[-1]
    return [
        _decode(entry, found, results) if phase == DECODE else _text(entry, found, results)
        for phase, found in entry["phases"].items()
    ]


def _text(entry: dict[str, Any], found: dict[str, Any], results: dict[str, Any]) -> str:
    share = percent(found["shares"]["attention"])
    return f"at {entry['tokens']:,} tokens attention is {share} of the work: {_most(found, results)}"


def _decode(entry: dict[str, Any], found: dict[str, Any], results: dict[str, Any]) -> str:
    share = percent(found["shares_read"]["attention"])
    start = f"with {entry['tokens']:,} tokens in the cache, keys and values are {share} of what a new token reads"
    return f"{start}: {_most(found, results)}"


def _most(found: dict[str, Any], results: dict[str, Any]) -> str:
    if not found["shares"]["patched"]:
        if results["interception"] is not None:
            return "none of it becomes faster"
        return "none of it is patched" if results["recipe"] else "none of it can be patched"
    if found["ceiling"] is None:
        return "all of it is patched"
    what = "the recipe's modules, if they cost nothing, make" if results["recipe"] else "perfect sparse attention makes"
    return f"{what} this at most {found['ceiling']:.2f}x faster"
