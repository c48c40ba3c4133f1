"""The plot of a benchmark: how many times faster than dense, over the length."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from ..files import write_file


def plot_ratios(results: dict[str, Any], path: Path) -> bool:
    """Draws the ratios of all phases, their quartiles and the ceiling of each. False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    lengths = [entry["tokens"] for entry in results["lengths"]]
    for number, phase in enumerate(results["lengths"][0]["phases"]):
        found = [entry["phases"][phase] for entry in results["lengths"]]
        ratios = [one["ratio"] for one in found]
        middle = [ratio["median"] for ratio in ratios]
        spread = [
            [ratio["median"] - ratio["low"] for ratio in ratios],
            [ratio["high"] - ratio["median"] for ratio in ratios],
        ]
        axes.errorbar(lengths, middle, yerr=spread, marker="o", capsize=3, label=phase, color=f"C{number}")
        if all(one["ceiling"] for one in found):
            most = [one["ceiling"] for one in found]
            axes.plot(lengths, most, linestyle=":", color=f"C{number}", label=f"{phase}, perfect kernel")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set(xlabel="tokens", ylabel="dense time / patched time", title=f"{results['model']}: {results['method']}")
    axes.legend()
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    write_file(path, drawn.getvalue())
    return True
