"""What `sparsify bench` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ..patcher.binding.patching import describe_paths
from ..tables import grid, percent, titled
from .arms import ARMS, DENSE, PATCHED
from .workload import DECODE

# What is left of the dense model: key of a length's results -> column.
_KEPT = {
    "kept_share": "elements kept",
    "cluster_scores_share": "scores computed",
    "activations_kept_share": "activations kept",
}


def bench_tables(results: dict[str, Any]) -> RenderableType:
    """Times, throughput and memory of all contenders, where the time goes, and one sentence for each phase."""
    batch = f", batch size {results['batch_size']}" if results["batch_size"] > 1 else ""
    title = (
        f"{results['model']}, {results['method']}: {results['dtype']} on {results['device']}, "
        f"{results['threads']} thread(s){batch}; dense is {results['dense']}"
    )
    parts: list[RenderableType] = [titled(title, _times(results)), "", titled("Where the time goes", _shares(results))]
    if any(entry["peak_memory"] for entry in results["lengths"]):
        parts += ["", titled("Peak memory above the loaded model, MiB", _memory(results))]
    parts += ["", *_calls(results), *_left_out(results), *results["sentences"]]
    return Group(*parts)


def _arms(results: dict[str, Any]) -> list[str]:
    """Those that were timed at any length."""
    first = results["lengths"][0]["phases"]
    timed = {arm for entry in results["lengths"] for arm in next(iter(entry["phases"].values()))["seconds"]}
    return [arm for arm in ARMS if first and arm in timed]


def _times(results: dict[str, Any]) -> Table:
    arms = _arms(results)
    header = ["phase", "length", *(f"{arm}, ms" for arm in arms), "dense / patched", "tokens/s"]
    rows = []
    for phase in results["lengths"][0]["phases"]:
        for entry in results["lengths"]:
            found = entry["phases"][phase]
            per = found["tokens"] if phase == DECODE else 1
            cells = [_spread(found["seconds"].get(arm), 1000 / per) for arm in arms]
            rates = found["tokens_per_second"]
            ratio = found["ratio"]
            between = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
            speeds = " -> ".join(_number(rates[arm]) for arm in (DENSE, PATCHED))
            name = "decode, a token" if phase == DECODE else phase
            rows.append([name, f"{entry['tokens']:,}", *cells, between, speeds])
    return grid(header, rows)


def _spread(seconds: dict[str, Any] | None, factor: float) -> str:
    """Median and quartiles; a time that was taken once has none."""
    if seconds is None:
        return "-"
    median, low, high = (_number(seconds[name] * factor) for name in ("median", "low", "high"))
    return f"{median} (once)" if len(seconds["runs"]) == 1 else f"{median} [{low}, {high}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _shares(results: dict[str, Any]) -> Table:
    # Only what the plan has.
    kept = [name for name in _KEPT if any(entry[name] is not None for entry in results["lengths"])]
    header = ["phase", "length", "attention", "down-projections", "patched", "at most", *(_KEPT[name] for name in kept)]
    rows = []
    for phase in results["lengths"][0]["phases"]:
        for entry in results["lengths"]:
            found = entry["phases"][phase]
            shares, most = found["shares"], found["ceiling"]
            parts = [percent(shares[name]) for name in ("attention", "feed_forward", "patched")]
            left = [percent(entry[name]) for name in kept]
            rows.append([phase, f"{entry['tokens']:,}", *parts, f"{most:.2f}x" if most else "-", *left])
    return grid(header, rows)


def _memory(results: dict[str, Any]) -> Table:
    arms = _arms(results)
    rows = []
    for entry in results["lengths"]:
        peaks = [entry["peak_memory"].get(arm) for arm in arms]
        cells = ["-" if peak is None else f"{peak / 2**20:,.0f}" for peak in peaks]
        dense, patched = (entry["peak_memory"].get(arm) for arm in (DENSE, PATCHED))
        rows.append([f"{entry['tokens']:,}", *cells, f"{patched / dense:.2f}" if dense and patched else "-"])
    return grid(["length", *arms, "patched / dense"], rows)


def _calls(results: dict[str, Any]) -> list[str]:
    """How many calls of patched modules took which way."""
    return [f"calls at {entry['tokens']:,} tokens: {describe_paths(entry['calls'])}" for entry in results["lengths"]]


def _left_out(results: dict[str, Any]) -> list[str]:
    return [
        f"{arm} attention was left out at {entry['tokens']:,} tokens: {reason}"
        for entry in results["lengths"]
        for arm, reason in entry["left_out"].items()
    ]
