"""Results as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def results_tables(results: dict[str, Any], *, by_module: bool = False) -> RenderableType:
    """The tables of one evaluation; by_module adds what each module kept."""
    parts: list[RenderableType] = [_scores(results)]
    if results["by_kind"]:
        parts.append(_kinds(results["by_kind"]))
    parts.append(_facts(results))
    if by_module:
        parts.append(_modules(results["kept"]["modules"]))
    return Group(*parts)


def _scores(results: dict[str, Any]) -> Table:
    scores, seconds = results["scores"], results["seconds"]
    dataset = results["dataset"]
    source = f"{dataset['name']} ({dataset['split']})" if dataset["split"] else dataset["name"]
    table = Table(title=f"{dataset['questions']} questions of {source}", title_justify="left")
    for column in ("", "EM", "F1", "seconds"):
        table.add_column(column, justify="left" if not column else "right")
    for arm in ("dense", "patched"):
        table.add_row(arm, _number(scores[arm]["exact_match"]), _number(scores[arm]["f1"]), f"{seconds[arm]:.1f}")
    difference = scores["difference"]
    table.add_section()
    table.add_row("difference", f"{difference['exact_match']:+.1f}", f"{difference['f1']:+.1f}", "")
    return table


def _kinds(kinds: dict[str, Any]) -> Table:
    table = Table(title="EM by kind of question", title_justify="left")
    for column in ("kind", "questions", "dense", "patched", "difference"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, row in kinds.items():
        table.add_row(
            kind,
            str(row["questions"]),
            _number(row["dense"]["exact_match"]),
            _number(row["patched"]["exact_match"]),
            f"{row['difference']['exact_match']:+.1f}",
        )
    return table


def _facts(results: dict[str, Any]) -> Table:
    kept, changed = results["kept"]["total"], results["changed"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("answers changed", f"{changed['right_to_wrong']} right to wrong, {changed['wrong_to_right']} back")
    table.add_row("same answer as dense", _percent(results["same_answer_share"]))
    table.add_row("KL divergence from dense", f"{results['mean_kl']:.4f} nats per answer token")
    table.add_row("attention elements kept", f"{_percent(kept['kept_share'])} of all visible")
    table.add_row("", _spread(kept, "long_kept_share", "in rows longer than k"))
    if kept["decode_v_rows_share"] is not None:
        table.add_row("V rows kept in decoding", _spread(kept, "decode_v_rows_share", "union over a KV head's queries"))
    table.add_row("rows without a threshold", f"{_of(kept['rows_without_threshold'], kept['long_rows'])}")
    table.add_row("rows saved by min-keep", f"{_of(kept['rows_saved_by_min_keep'], kept['long_rows'])}")
    if left_out := results["dataset"]["left_out_too_long"]:
        table.add_row("left out", Text(f"{left_out} questions longer than the model's positions", style="yellow"))
    return table


def _modules(modules: dict[str, Any]) -> Table:
    table = Table(title="Kept per module, rows longer than k", title_justify="left")
    for column in ("module", "kept", "p5", "p95", "no threshold", "min-keep", "V rows decoding", "p5", "p95"):
        table.add_column(column, justify="left" if column == "module" else "right")
    for name, row in modules.items():
        table.add_row(
            name,
            *(_percent(row[f"long_kept_share{part}"]) for part in ("", "_p5", "_p95")),
            str(row["rows_without_threshold"]),
            str(row["rows_saved_by_min_keep"]),
            *(_percent(row[f"decode_v_rows_share{part}"]) for part in ("", "_p5", "_p95")),
        )
    return table


def _spread(row: dict[str, Any], key: str, what: str) -> str:
    if row[key] is None:
        return f"no row {what}" if "rows" in what else "none"
    return f"{_percent(row[key])} {what} (p5 {_percent(row[f'{key}_p5'])}, p95 {_percent(row[f'{key}_p95'])})"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} rows longer than k" + (f" ({_percent(part / whole)})" if whole else "")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return f"{value:.1f}"
