"""A tuning as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..evaluation.report import STYLES
from ..tables import grid, percent, titled
from .ladder import TUNED, UNIFORM
from .sensitivity import PREDICTED_KL, ModuleSensitivity, SensitivityMap

SHOWN = 3  # most and least sensitive modules
LEVELS = (
    "each chain is tested from dense to sparse, with a chance of at most 2.5 % of any wrong PASS in it; what is "
    "recommended comes from the tuned chain alone"
)


def tune_report(record: dict[str, Any], found: SensitivityMap) -> RenderableType:
    """The map in short, the ladder on tuning data, the verdicts, and what to take."""
    return Group(
        _map_table(record, found),
        "",
        _ladder_table(record),
        "",
        *_verdicts(record),
        LEVELS,
        "",
        *_conclusion(record),
    )


def _map_table(record: dict[str, Any], found: SensitivityMap) -> RenderableType:
    """The most and the least sensitive modules at a few keep rates."""
    columns = [place for place in range(1, len(found.keeps)) if found.keeps[place] in _shown_keeps(found)]
    ranked = sorted(found.modules.items(), key=lambda entry: _total(entry[1]), reverse=True)
    shown = ranked if len(ranked) <= 2 * SHOWN else [*ranked[:SHOWN], *ranked[-SHOWN:]]
    keeps = _keeps_of_recommended(record)
    rows = [
        [
            name,
            *(f"{module.error[place]:.1e}" for place in columns),
            *([] if keeps is None else [f"{keeps.get(name, 1.0):g}"]),
        ]
        for name, module in shown
    ]
    if len(shown) < len(ranked):
        rows.insert(SHOWN, [f"... {len(ranked) - len(shown)} more in sensitivity.json"])
    what = "predicted KL" if found.error_is == PREDICTED_KL else "relative squared error"
    title = (
        f"What each module alone loses on {found.items} items of {record['tuned_on']['name']}: {what} at a keep rate"
    )
    header = ["module", *(f"{found.keeps[place]:g}" for place in columns), *([] if keeps is None else ["recommended"])]
    return titled(title, grid(header, rows))


def _shown_keeps(found: SensitivityMap) -> set[float]:
    sparse = found.keeps[1:]
    return {sparse[place] for place in {0, len(sparse) // 3, 2 * len(sparse) // 3, len(sparse) - 1}}


def _total(module: ModuleSensitivity) -> float:
    return sum(module.error)


def _keeps_of_recommended(record: dict[str, Any]) -> dict[str, float] | None:
    chosen = record["recommended"]
    return chosen and next(cell["keeps"] for cell in record["cells"] if cell["name"] == chosen["cell"])


def _ladder_table(record: dict[str, Any]) -> RenderableType:
    """Budgets and how far the model moves on tuning data."""
    rows = [
        [
            cell["label"],
            cell["allocated_by"] or "-",
            percent(cell["predicted_share"]),
            "-" if cell["tuning_kl"] is None else f"{cell['tuning_kl']:.5f}",
            *([f"{cell['kept_per_k']:.2f}"] if record["calibration"] and cell["kept_per_k"] is not None else []),
        ]
        for cell in record["cells"]
    ]
    header = ["candidate", "allocated by", f"% of {record['unit']}", "KL from dense"]
    title = f"Candidates on tuning data, {record['tuned_on']['items']} items"
    return titled(title, grid([*header, *(["x k"] if record["calibration"] else [])], rows, text_columns=2))


def _verdicts(record: dict[str, Any]) -> Iterator[RenderableType]:
    rows, reasons = [], []
    for chain in (TUNED, UNIFORM):
        for cell in (cell for cell in record["cells"] if cell["chain"] == chain):
            verdict = cell["verdict"]
            if verdict is None:
                rows.append([cell["label"], "failed", "-", "-"])
                reasons.append(f"{cell['label']}: failed: {cell['error']}")
                continue
            decision = Text(verdict["decision"], style=STYLES[verdict["decision"]])
            rows.append([cell["label"], decision, f"{verdict['p']:.2g}", percent(1 - cell["saved"]["share"])])
        judged = [cell for cell in record["cells"] if cell["chain"] == chain and cell["verdict"] is not None]
        stopped = [cell for cell in judged if cell["verdict"]["decision"] != "PASS"]
        if stopped:
            reasons.append(f"{stopped[0]['label']}: {stopped[0]['verdict']['reason']}")
    dataset = record["dataset"]
    items = min(record["limit"] or dataset["items"], dataset["items"])
    title = f"Verdicts on {items} items of {dataset['name']}, {record['gate']['margin']}"
    yield titled(title, grid(["candidate", "verdict", "p", f"% of {record['unit']}"], rows, text_columns=2))
    yield ""
    yield from reasons


def _conclusion(record: dict[str, Any]) -> Iterator[RenderableType]:
    yield Text(record["comparison"]["sentence"], style="bold")
    if record["recommended"] is not None:
        yield f"recommended: {record['recommended']['cell']}, {record['recommended']['reason']}"
        return
    judged = [cell for cell in record["cells"] if cell["chain"] == TUNED and cell["verdict"] is not None]
    if not judged:
        yield "nothing is recommended: no tuned allocation could be run"
        return
    first = judged[0]
    why = "the densest allocation is worse than allowed"
    if first["verdict"]["decision"] != "FAIL":
        why = "too few items to tell" if first["verdict"]["needed"] else "more items are unlikely to tell"
    yield f"nothing is recommended: {why}; {first['label']}: {first['verdict']['reason']}"
