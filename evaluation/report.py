"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType

from ..patcher.methods import METHODS
from ..patcher.methods.budget import Budget
from ..tables import facts, grid, percent, titled

# Above this share of fallback rows the figures say more about exact top-k than about the thresholds.
WORTH_A_NOTE = 0.1
NO_THRESHOLD_NOTE = (
    "note: {} of the rows longer than k had no threshold and used exact top-k; calibrate on more or longer samples"
)


def results_tables(results: dict[str, Any], *, by_module: bool = False) -> RenderableType:
    """The tables of one evaluation; by_module adds what each module kept."""
    parts: list[RenderableType] = [_scores(results), ""]
    if results["by_kind"]:
        parts += [_kinds(results), ""]
    parts.append(facts(_facts(results)))
    total = results["kept"]["total"]
    if total["rows_without_threshold"] > WORTH_A_NOTE * max(1, total["long_rows"]):
        parts += ["", NO_THRESHOLD_NOTE.format(percent(total["rows_without_threshold"] / total["long_rows"]))]
    if by_module:
        parts += ["", _modules(results["kept"]["modules"], results["plan"])]
    return Group(*parts)


def _scores(results: dict[str, Any]) -> RenderableType:
    scores, dataset = results["scores"], results["dataset"]
    source = f"{dataset['name']} ({dataset['split']})" if dataset["split"] else dataset["name"]
    metrics = results["metrics"]
    rows = [[arm, *(f"{scores[arm][name]:.1f}" for name in metrics)] for arm in ("dense", "patched")]
    rows.append(["difference", *(f"{scores['difference'][name]:+.1f}" for name in metrics)])
    title = f"{dataset['questions']} questions of {source}; patched: {results['method']}"
    return titled(title, grid(["", *metrics.values()], rows))


def _primary(results: dict[str, Any]) -> tuple[str, str]:
    """The metric that "right" and "wrong" go by: its key and its short name."""
    key, short = next(iter(results["metrics"].items()))
    return key, short


def _kinds(results: dict[str, Any]) -> RenderableType:
    key, short = _primary(results)
    rows = [
        [
            kind,
            str(row["questions"]),
            *(f"{row[arm][key]:.1f}" for arm in ("dense", "patched")),
            f"{row['difference'][key]:+.1f}",
        ]
        for kind, row in results["by_kind"].items()
    ]
    return titled(f"{short} by kind of question", grid(["kind", "questions", "dense", "patched", "difference"], rows))


def _facts(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    changed, short = results["changed"], _primary(results)[1]
    yield f"{short} changed", f"{changed['right_to_wrong']} right to wrong, {changed['wrong_to_right']} wrong to right"
    yield "same answer as dense", percent(results["same_answer_share"])
    if results["mean_kl"] is not None:
        yield "KL divergence from dense", f"{results['mean_kl']:.4f} {results['kl_unit']}"
    if results["mean_cosine"] is not None:
        cosines = f"questions {results['mean_cosine']:.4f}, passages {results['mean_passage_cosine']:.4f}"
        yield "cosine with dense", f"{cosines}, means over embeddings"
    yield from _kept_facts(results["kept"]["total"], results["plan"])
    seconds = results["seconds"]
    yield "time", f"dense {seconds['dense']:.1f} s; patched {seconds['patched']:.1f} s, with the counting above"
    if left_out := results["dataset"]["left_out_too_long"]:
        yield "left out", f"{left_out} questions longer than what the model can read at once"


def _kept_facts(kept: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if kept["kept_share"] is not None:
        yield "attention elements kept", f"{percent(kept['kept_share'])} of all that is visible"
        if kept["long_rows"]:
            yield "in rows longer than k", f"{_spread(kept, 'long_kept_share')}, {kept['kept_per_k']:.2f} x k"
        else:
            yield "in rows longer than k", "there was none: nothing was sparse"
    if kept["decode_v_rows_share"] is not None:
        yield "V rows kept in decoding", f"{_spread(kept, 'decode_v_rows_share')}, union over a KV head's queries"
    if any(METHODS[entry["method"]].needs_thresholds for entry in plan.values()):
        yield "rows without a threshold", _of(kept["rows_without_threshold"], kept["long_rows"])
        yield "rows saved by min-keep", _of(kept["rows_saved_by_min_keep"], kept["long_rows"])
    if kept["cluster_scores_share"] is not None:
        distances = percent(kept["cluster_distances_share"])
        yield "attention scores computed", f"{percent(kept['cluster_scores_share'])} of dense, by clustered attention"
        yield "and k-means distances", f"{distances} of dense scores; each costs about as much as a score"
    if kept["activations_kept_share"] is not None:
        yield "feed-forward activations kept", percent(kept["activations_kept_share"])


def _modules(modules: dict[str, Any], plan: dict[str, Any]) -> RenderableType:
    by_row = {name for name, entry in plan.items() if issubclass(METHODS[entry["method"]], Budget)}
    header = ["module", "x k", "kept %", "p5", "p95", "no theta", "min-keep", "V rows %", "p5", "p95"]
    rows = [
        [
            name,
            "-" if row["kept_per_k"] is None else f"{row['kept_per_k']:.2f}",
            *(_number(row[f"long_kept_share{part}"]) for part in ("", "_p5", "_p95")),
            str(row["rows_without_threshold"]),
            str(row["rows_saved_by_min_keep"]),
            *(_number(row[f"decode_v_rows_share{part}"]) for part in ("", "_p5", "_p95")),
        ]
        for name, row in modules.items()
        if name in by_row
    ]
    others = [
        [name, *(_number(row[f"{key}_share"]) for key in ("cluster_scores", "cluster_distances", "activations_kept"))]
        for name, row in modules.items()
        if name not in by_row
    ]
    parts: list[RenderableType] = []
    if rows:
        parts.append(titled("Kept per module in rows longer than k; V rows in decoding", grid(header, rows)))
    if rows and others:
        parts.append("")
    if others:
        title = "Clustered attention, against dense scores; feed-forward activations"
        parts.append(titled(title, grid(["module", "scores %", "distances %", "activations kept %"], others)))
    return Group(*parts)


def _number(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _spread(row: dict[str, Any], key: str) -> str:
    return f"{percent(row[key])} (p5 {percent(row[f'{key}_p5'])}, p95 {percent(row[f'{key}_p95'])})"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole} rows longer than k" + (f" ({percent(part / whole)})" if whole else "")
