"""The tables of an evaluation."""

from __future__ import annotations

import copy
import io
from typing import Any

from hf_sparsify.evaluation.report import results_tables
from rich.console import Console

KEPT: dict[str, Any] = {
    "rows": 200,
    "kept_share": 0.25,
    "long_rows": 100,
    "kept_per_k": 1.04,
    "long_kept_share": 0.125,
    "long_kept_share_p5": 0.1,
    "long_kept_share_p95": 0.2,
    "rows_without_threshold": 5,
    "rows_saved_by_min_keep": 0,
    "decode_v_rows_share": 0.333,
    "decode_v_rows_share_p5": 0.3,
    "decode_v_rows_share_p95": 0.4,
    "cluster_scores_share": None,
    "cluster_distances_share": None,
    "activations_kept_share": None,
}
ARMS = {
    "dense": {"exact_match": 50.0, "f1": 60.0},
    "patched": {"exact_match": 47.5, "f1": 61.25},
    "difference": {"exact_match": -2.5, "f1": 1.25},
}
RESULTS: dict[str, Any] = {
    "method": "top-theta, k = 64 in 2 modules",
    "plan": {"layers.0.attn": {"method": "top-theta", "k": 64}, "idle": {"method": "top-k", "k": 64}},
    "dataset": {"name": "squad", "split": "validation", "questions": 40, "left_out_too_long": 0},
    "metrics": {"exact_match": "EM", "f1": "F1"},
    "scores": ARMS,
    "by_kind": {},
    "changed": {"right_to_wrong": 3, "wrong_to_right": 2},
    "same_answer_share": 0.875,
    "mean_kl": 0.01234,
    "kl_unit": "nats per answer token",
    "mean_cosine": None,
    "mean_passage_cosine": None,
    "seconds": {"dense": 1.5, "patched": 2.25},
    "kept": {"total": KEPT, "modules": {"layers.0.attn": KEPT}},
}


def shown(results: dict[str, Any], **options: bool) -> list[str]:
    """Every line with single spaces."""
    stream = io.StringIO()
    Console(file=stream, width=160).print(results_tables(results, **options))
    return [" ".join(line.split()) for line in stream.getvalue().splitlines() if line.strip()]


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RESULTS), **changes}


def test_scores_and_facts() -> None:
    lines = shown(RESULTS)
    assert "40 questions of squad (validation); patched: top-theta, k = 64 in 2 modules" in lines
    assert "dense 50.0 60.0" in lines
    assert "patched 47.5 61.2" in lines
    assert "time dense 1.5 s; patched 2.2 s, with the counting above" in lines
    assert "difference -2.5 +1.2" in lines
    assert "EM changed 3 right to wrong, 2 wrong to right" in lines
    assert "same answer as dense 87.5 %" in lines
    assert "KL divergence from dense 0.0123 nats per answer token" in lines
    assert "in rows longer than k 12.5 % (p5 10.0 %, p95 20.0 %), 1.04 x k" in lines
    assert "rows without a threshold 5 of 100 rows longer than k (5.0 %)" in lines
    assert not any(line.startswith(("module", "left out", "note")) for line in lines)


def test_a_file_has_no_split() -> None:
    lines = shown(changed(dataset={**RESULTS["dataset"], "name": "mine.jsonl", "split": ""}))
    assert "40 questions of mine.jsonl; patched: top-theta, k = 64 in 2 modules" in lines


def test_many_rows_without_a_threshold_are_worth_a_note() -> None:
    few, many = ({**KEPT, "rows_without_threshold": rows} for rows in (10, 11))
    notes = [[line for line in shown(changed(kept={"total": t, "modules": {}})) if "note" in line] for t in (few, many)]
    assert notes[0] == []
    assert notes[1][0].startswith("note: 11.0 % of the rows longer than k had no threshold")


def test_nothing_sparse_is_said() -> None:
    total = {**KEPT, "long_rows": 0, "kept_per_k": None, "rows_without_threshold": 0, "decode_v_rows_share": None}
    lines = shown(changed(kept={"total": total, "modules": {}}))
    assert "in rows longer than k there was none: nothing was sparse" in lines
    assert not any(line.startswith("V rows") for line in lines)


def test_left_out_questions_are_said() -> None:
    lines = shown(changed(dataset={**RESULTS["dataset"], "left_out_too_long": 7}))
    assert "left out 7 questions longer than what the model can read at once" in lines


def test_metrics_of_another_task() -> None:
    arms = {arm: {"accuracy": row["exact_match"], "reciprocal_rank": row["f1"]} for arm, row in ARMS.items()}
    metrics = {"accuracy": "top-1", "reciprocal_rank": "MRR"}
    kinds = {"time": {"questions": 4, **arms}}
    cosines = {"mean_kl": None, "kl_unit": None, "mean_cosine": 0.98765, "mean_passage_cosine": 0.5}
    lines = shown(changed(metrics=metrics, scores=arms, by_kind=kinds, **cosines))
    assert "top-1 MRR" in lines
    assert "patched 47.5 61.2" in lines
    assert "top-1 by kind of question" in lines
    assert "time 4 50.0 47.5 -2.5" in lines
    assert "top-1 changed 3 right to wrong, 2 wrong to right" in lines
    assert "cosine with dense questions 0.9877, passages 0.5000, means over embeddings" in lines
    assert not any("KL" in line or "EM" in line for line in lines)
    assert "KL divergence from dense 0.0123 nats per question" in shown(changed(kl_unit="nats per question"))


def test_kinds() -> None:
    lines = shown(changed(by_kind={"time": {"questions": 4, **ARMS}}))
    assert "time 4 50.0 47.5 -2.5" in lines


def test_modules() -> None:
    row = "layers.0.attn 1.04 12.5 10.0 20.0 5 0 33.3 30.0 40.0"
    assert row in shown(RESULTS, by_module=True)
    unused = dict.fromkeys(KEPT) | {"rows_without_threshold": 0, "rows_saved_by_min_keep": 0}
    lines = shown(changed(kept={"total": KEPT, "modules": {"idle": unused}}), by_module=True)
    assert "idle - - - - 0 0 - - -" in lines


def test_other_methods_have_figures_of_their_own() -> None:
    nothing = dict.fromkeys(KEPT) | {"rows_without_threshold": 0, "rows_saved_by_min_keep": 0, "long_rows": 0}
    clustered = nothing | {"cluster_scores_share": 0.5, "cluster_distances_share": 1.25}
    feed_forward = nothing | {"activations_kept_share": 0.0625}
    plan = {"a.attn": {"method": "clustered"}, "a.mlp": {"method": "top-k-feed-forward"}}
    kept = {"total": clustered, "modules": {"a.attn": clustered, "a.mlp": feed_forward}}
    kept["total"] = clustered | {"activations_kept_share": 0.0625}
    lines = shown(changed(plan=plan, kept=kept), by_module=True)
    assert "attention scores computed 50.0 % of dense, by clustered attention" in lines
    assert "and k-means distances 125.0 % of dense scores; each costs about as much as a score" in lines
    assert "feed-forward activations kept 6.2 %" in lines
    assert "a.attn 50.0 125.0 -" in lines
    assert "a.mlp - - 6.2" in lines
    assert not any("rows longer than k" in line or "threshold" in line or "kept per" in line for line in lines)
    only_top_k = {"layers.0.attn": {"method": "top-k", "k": 64}}
    assert not any("threshold" in line or "min-keep" in line for line in shown(changed(plan=only_top_k)))
