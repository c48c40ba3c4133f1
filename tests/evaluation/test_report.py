"""The tables of an evaluation."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from hf_sparsify.evaluation.report import comparison, modules_table, results_tables
from rich.console import Console, RenderableType

KEPT: dict[str, Any] = {
    "rows": 200,
    "kept_share": 0.25,
    "long_rows": 100,
    "kept_per_k": 1.04,
    "kept_per_k_p5": 0.41,
    "kept_per_k_p95": 1.71,
    "long_kept_share": 0.125,
    "long_kept_share_p5": 0.1,
    "long_kept_share_p95": 0.2,
    "rows_without_threshold": 5,
    "rows_saved_by_min_keep": 0,
    "decode_v_rows_share": 0.333,
    "decode_v_rows_share_p5": 0.3,
    "decode_v_rows_share_p95": 0.4,
    "decode_kv_bytes_share": 0.667,
    "cluster_scores_share": None,
    "cluster_distances_share": None,
    "activations_kept_share": None,
}
ARMS = {
    "dense": {"exact_match": 50.0, "f1": 60.0},
    "patched": {"exact_match": 47.5, "f1": 61.25},
    "difference": {"exact_match": -2.5, "f1": 1.25},
}
VERDICT: dict[str, Any] = {
    "decision": "INCONCLUSIVE",
    "margin": "a drop of at most 1.0 points",
    "reason": "the drop may be more or less than the 1.0 points allowed",
    "dense_above_chance": True,
    "p_holm": None,
}
INTERVALS = {
    "exact_match": {"difference": -2.5, "low": -12.34, "high": 7.5},
    "f1": {"difference": 1.25, "low": -8.0, "high": 10.04},
}
FLIPS = {
    "metric": "exact_match",
    "right_to_wrong": ["a", "b", "c"],
    "wrong_to_right": ["d", "e"],
    "p": 1.0,
    "descriptive": False,
    "answers": {},
}
RESULTS: dict[str, Any] = {
    "recipe": "sparsified",
    "base_model": {"id": "some/model"},
    "method": "top-theta, k = 64 in 2 modules",
    "plan": {"layers.0.attn": {"method": "top-theta", "k": 64}, "idle": {"method": "top-k", "k": 64}},
    "dataset": {"name": "squad", "split": "validation", "items": 40, "groups": 40, "left_out_too_long": 0},
    "metrics": {"exact_match": "EM", "f1": "F1"},
    "primary": "f1",
    "verdict": VERDICT,
    "scores": ARMS,
    "intervals": INTERVALS,
    "by_kind": {},
    "flips": FLIPS,
    "same_answer_share": 0.875,
    "distance": {"kl": {"value": 0.01234, "low": 0.01, "high": 0.01567, "unit": "nats per answer token"}},
    "near_ties": {"below": 1e-4, "dense": 0, "patched": 0},
    "dense_from_cache": 0,
    "seen_in_calibration": 0,
    "seconds": {"dense": 1.5, "patched": 2.25},
    "kept": {"total": KEPT, "modules": {"layers.0.attn": KEPT}},
}


def printed(what: RenderableType, width: int = 160) -> list[str]:
    """Every line with single spaces."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(what)
    return [" ".join(line.split()) for line in stream.getvalue().splitlines() if line.strip()]


def shown(results: dict[str, Any], **options: bool) -> list[str]:
    return printed(results_tables(results, **options))


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RESULTS), **changes}


def test_scores_and_facts() -> None:
    lines = shown(RESULTS)
    assert lines[0] == "40 items of squad (validation); patched: top-theta, k = 64 in 2 modules"
    assert "dense patched difference 95 % interval" in lines
    assert "EM 50.0 47.5 -2.5 -12.3 to +7.5" in lines
    assert "F1 60.0 61.2 +1.2 -8.0 to +10.0" in lines
    assert "INCONCLUSIVE: the drop may be more or less than the 1.0 points allowed" in lines
    assert "the verdict goes by F1, a drop of at most 1.0 points" in lines
    assert "time dense 1.5 s; patched 2.2 s, with the counting above" in lines
    assert "EM flipped 3 right to wrong, 2 wrong to right (exact McNemar p = 1)" in lines
    assert "same answer as dense 87.5 %" in lines
    assert "KL divergence from dense 0.0123 nats per answer token (95 % interval 0.0100 to 0.0157)" in lines
    assert "in rows longer than k 12.5 % (p5 10.0 %, p95 20.0 %), 1.04 x k" in lines
    assert "kept / k of single rows mean 1.04 (p5 0.41, p95 1.71)" in lines
    assert "KV bytes needed in decoding 66.7 % of dense: every K row, the V rows kept" in lines
    assert "rows without a threshold 5 of 100 rows longer than k (5.0 %)" in lines
    unsaid = ("module", "left out", "note", "intervals", "perplexity", "cosine", "near ties", "seen in", "kind")
    assert not any(line.startswith(unsaid) for line in lines)


def test_a_file_has_no_split() -> None:
    lines = shown(changed(dataset={**RESULTS["dataset"], "name": "mine.jsonl", "split": ""}))
    assert "40 items of mine.jsonl; patched: top-theta, k = 64 in 2 modules" in lines


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


def test_left_out_items_are_said() -> None:
    lines = shown(changed(dataset={**RESULTS["dataset"], "left_out_too_long": 7}))
    assert "left out 7 items longer than what the model can read at once" in lines


def test_metrics_of_another_task() -> None:
    arms = {arm: {"accuracy": row["exact_match"], "reciprocal_rank": row["f1"]} for arm, row in ARMS.items()}
    metrics = {"accuracy": "top-1", "reciprocal_rank": "MRR"}
    intervals = {"accuracy": INTERVALS["exact_match"], "reciprocal_rank": INTERVALS["f1"]}
    other = {"metrics": metrics, "scores": arms, "intervals": intervals, "primary": "accuracy"}
    kinds = {"time": {"items": 4, **arms}}
    cosines = {"distance": {"question_cosine": 0.98765, "passage_cosine": 0.5}}
    lines = shown(changed(**other, by_kind=kinds, flips={**FLIPS, "metric": "accuracy"}, **cosines))
    assert "top-1 50.0 47.5 -2.5 -12.3 to +7.5" in lines
    assert "MRR 60.0 61.2 +1.2 -8.0 to +10.0" in lines
    assert "the verdict goes by top-1, a drop of at most 1.0 points" in lines
    assert "top-1 by kind" in lines
    assert "time 4 50.0 47.5 -2.5" in lines
    assert "top-1 flipped 3 right to wrong, 2 wrong to right (exact McNemar p = 1)" in lines
    assert "cosine with dense questions 0.9877, passages 0.5000, means over embeddings" in lines
    assert not any("KL" in line or "EM" in line for line in lines)
    kl = {"kl": {**RESULTS["distance"]["kl"], "unit": "nats per question"}}
    expected = "KL divergence from dense 0.0123 nats per question (95 % interval 0.0100 to 0.0157)"
    assert expected in shown(changed(distance=kl))


def test_tasks_without_right_and_wrong() -> None:
    perplexity = {"dense": 12.346, "patched": 13.0, "ratio": 1.05306, "low": 1.01, "high": 1.1}
    lines = shown(changed(flips=None, same_answer_share=None, distance={"perplexity": perplexity}))
    expected = "perplexity dense 12.35, patched 13.00, ratio 1.0531 (95 % interval 1.0100 to 1.1000)"
    assert expected in lines
    assert not any("flipped" in line or "same answer" in line for line in lines)


def test_kinds() -> None:
    lines = shown(changed(by_kind={"time": {"items": 4, **ARMS}}))
    assert "F1 by kind" in lines, "by what the verdict goes by"
    assert "time 4 60.0 61.2 +1.2" in lines


RATES = {"wer": {"dense": 5.0, "patched": 7.5, "difference": 2.5, "low": -0.5, "high": 5.2, "units": 40}}


def test_grouped_items_are_said() -> None:
    dataset = {**RESULTS["dataset"], "groups": 13}
    lines = shown(changed(dataset=dataset, flips={**FLIPS, "p": 0.0123, "descriptive": True}))
    assert "intervals from resampling 13 groups: items on one passage are not independent" in lines
    spoken = shown(changed(dataset=dataset, task="asr", error_rates=RATES))
    assert "intervals from resampling 13 groups: recordings of one speaker are not independent" in spoken
    assert "WER, all words 5.0 7.5 +2.5 -0.5 to +5.2" in spoken
    assert not any("WER" in line for line in lines)
    flipped = "3 right to wrong, 2 wrong to right (exact McNemar p = 0.012, descriptive: items are grouped)"
    assert f"EM flipped {flipped}" in lines


def test_what_the_figures_rest_on_is_said() -> None:
    lines = shown(
        changed(near_ties={"below": 1e-4, "dense": 1, "patched": 2}, dense_from_cache=39, seen_in_calibration=5)
    )
    assert "time dense 1.5 s (39 answers from the cache); patched 2.2 s, with the counting above" in lines
    assert "near ties 3 answers that another batch size may change (margin below 0.0001)" in lines
    assert "seen in calibration 5 of these items: the verdict flatters" in lines


def test_a_dense_model_that_guesses_is_worth_a_note() -> None:
    lines = shown(changed(verdict={**VERDICT, "dense_above_chance": False}))
    assert lines[-1].startswith("note: the dense model itself is not clearly above chance here")


@pytest.mark.parametrize(("decision", "colour"), [("PASS", "32"), ("FAIL", "31"), ("INCONCLUSIVE", "33")])
def test_the_decision_has_a_colour(decision: str, colour: str) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=160, force_terminal=True, color_system="standard")
    console.print(results_tables(changed(verdict={**VERDICT, "decision": decision})))
    assert f"\x1b[1;{colour}m{decision}\x1b[0m: the drop may be" in stream.getvalue()


def test_several_recipes_side_by_side() -> None:
    one = changed(verdict={**VERDICT, "decision": "PASS", "p_holm": 0.0123})
    two = changed(recipe=None, method="top-k, k = 2", verdict={**VERDICT, "p_holm": 0.5})
    two["scores"]["patched"]["f1"], two["intervals"]["f1"]["difference"] = 50.04, -9.96
    two |= {"distance": {}, "same_answer_share": None}
    lines = printed(comparison([one, two]), width=200)
    assert lines[0] == "2 verdicts on 40 items of squad (validation)"
    header = "recipe verdict method metric dense patched difference 95 % interval p same answer KL"
    assert lines[1] == header
    passed = "PASS top-theta, k = 64 in 2 modules F1 60.0 61.2 +1.2 -8.0 to +10.0 0.012 87.5 % 0.0123"
    assert f"sparsified {passed}" in lines
    assert "some/model INCONCLUSIVE top-k, k = 2 F1 60.0 50.0 -10.0 -8.0 to +10.0 0.5 - -" in lines
    assert f"sparsified: PASS: {VERDICT['reason']}" in lines
    assert f"some/model: INCONCLUSIVE: {VERDICT['reason']}" in lines
    assert "p: one-sided, of a loss beyond what is allowed, after Holm's correction" in lines[-1]
    narrow = printed(comparison([one, two]))
    assert narrow[1] == header, "where a file is written nothing of it is folded"
    assert any(line.endswith("F1 60.0 50.0 -10.0 -8.0 to +10.0 0.5 - -") for line in narrow)
    two["dataset"] = {**two["dataset"], "name": "films", "items": 1, "split": ""}
    mixed = printed(comparison([one, two]), width=200)
    assert mixed[0] == "2 verdicts"
    assert mixed[1] == header.replace("method", "method items")
    assert any("top-k, k = 2 1 item of films F1" in line for line in mixed)


def test_answers_that_flipped_are_shown() -> None:
    said = {"gold": ["noon", "at noon"], "dense": "noon", "patched": "x" * 50}
    lost = ["a", "b", "c", "f", "g"]
    flips = {**FLIPS, "right_to_wrong": lost, "answers": dict.fromkeys([*lost, "d", "e"], said)}
    lines = shown(changed(flips=flips))
    start = lines.index("Answers that flipped (2 more in results.json)")
    assert lines[start + 1] == "item gold dense patched"
    rows = lines[start + 3 : start + 8]
    assert [row.rsplit(" ", 6)[0] for row in rows] == [
        *(f"right to wrong {name}" for name in "abc"),
        *(f"wrong to right {name}" for name in "de"),
    ]
    assert rows[0].endswith(f"noon / at noon noon {'x' * 29}...")


def test_an_earlier_run_is_said() -> None:
    assert not any("nothing was run" in line for line in shown(RESULTS))
    lines = shown(RESULTS, was_there=True)
    assert any(line.startswith("note: nothing was run") for line in lines)


def test_modules() -> None:
    assert "module x k p5-p95 kept % no theta min-keep V % p5-p95 KV %" in shown(RESULTS, by_module=True)
    row = "layers.0.attn 1.04 0.41-1.71 12.5 5 0 33.3 30.0-40.0 66.7"
    assert row in shown(RESULTS, by_module=True)
    unused = dict.fromkeys(KEPT) | {"rows_without_threshold": 0, "rows_saved_by_min_keep": 0}
    lines = shown(changed(kept={"total": KEPT, "modules": {"idle": unused}}), by_module=True)
    assert "idle - - - 0 0 - - -" in lines


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
    unsaid = ("threshold", "min-keep", "kept / k")
    assert not any(word in line for word in unsaid for line in shown(changed(plan=only_top_k)))


def test_a_kept_count_beyond_the_scale_is_said_as_such() -> None:
    total = {**KEPT, "kept_per_k_p95": 10.0}
    lines = shown(changed(kept={"total": total, "modules": {}}))
    assert "kept / k of single rows mean 1.04 (p5 0.41, p95 10 or more)" in lines


def test_the_table_of_modules_fits_the_narrowest_width_that_it_is_given() -> None:
    modules = {"encoder.block.11.layer.0.SelfAttention": KEPT}
    plan = {name: {"method": "top-theta", "k": 64} for name in modules}
    results = changed(kept={"total": KEPT, "modules": modules}, plan=plan)
    row = "encoder.block.11.layer.0.SelfAttention 1.04 0.41-1.71 12.5 5 0 33.3 30.0-40.0 66.7"
    assert row in printed(modules_table(results), width=120)
