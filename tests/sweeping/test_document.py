"""sweep.json: what is recommended, how the command ends, and which directories are taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.commands.sweep import exit_code
from hf_sparsify.errors import UsageError
from hf_sparsify.sweeping import document as doc
from hf_sparsify.sweeping.grid import make_cells

ONE_LAYER = {
    "decoder self": {"modules": 1, "patched": ["attention"]},
    "decoder feed-forward": {"modules": 1, "patched": ["ffn"]},
}


def kept(setting: dict[str, Any]) -> dict[str, Any]:
    """What a model of one layer keeps, if a setting keeps what it says."""
    attention = {"kept_share": setting["keep"], "cluster_scores_share": setting["clusters"] and 0.4}
    rows = {"attention": attention, "ffn": {"activations_kept_share": setting["ffn_keep"]}}
    return {"total": attention | rows["ffn"], "modules": {name: {"elements": 10, **row} for name, row in rows.items()}}


def made(*decisions: str | None, methods: str = "top-k", **grid: str) -> doc.Document:
    """A document whose cells came to these decisions; None failed."""
    document = doc.make_document(make_cells(methods, **grid), {}, run="r", command="sparsify sweep")
    for entry, decision in zip(document["cells"], decisions, strict=True):
        if decision is None:
            doc.fail(entry, "out of memory")
            continue
        results = {
            "verdict": {"decision": decision, "p": 0.01, "reason": "because"},
            "module_kinds": ONE_LAYER,
            "kept": kept(entry["setting"]),
        }
        doc.take_results(entry, results, "x/results.json", 0.025)
    return document


@pytest.mark.parametrize(
    ("decisions", "code", "required"),
    [
        (("PASS", "PASS", "FAIL"), 0, 0),
        (("PASS", "FAIL", "NOT TESTED"), 3, 3),
        (("PASS", "INCONCLUSIVE", "NOT TESTED"), 0, 5),
        (("INCONCLUSIVE", "NOT TESTED", "NOT TESTED"), 0, 5),
        (("PASS", None, None), 1, 1),
        (("PASS", None, "PASS"), 0, 0),
        (("PASS", None, "FAIL"), 3, 3),
    ],
)
def test_exit_codes(decisions: tuple[str, ...], code: int, required: int) -> None:
    document = made(*decisions, keep="1.0,0.5,0.1")
    assert exit_code(document, require_conclusion=False) == code
    assert exit_code(document, require_conclusion=True) == required


def test_several_chains_end_as_one() -> None:
    grid = {"methods": "top-k,top-theta", "keep": "1.0,0.5"}
    assert exit_code(made("PASS", "FAIL", "PASS", "PASS", **grid), require_conclusion=True) == 0
    assert exit_code(made("PASS", "FAIL", "PASS", "FAIL", **grid), require_conclusion=True) == 3
    assert exit_code(made("PASS", "FAIL", "PASS", "INCONCLUSIVE", **grid), require_conclusion=True) == 5


def test_the_largest_saving_that_passes_is_recommended() -> None:
    assert doc.recommend(made("PASS", "PASS", "PASS", "FAIL", keep="1.0,0.5,0.25,0.1"), {}) == {
        "cell": "top-k-keep-0.25",
        "reason": "top-k, keep = 0.25 saves 75.0 % of attention elements: the most of the 2 sparse ones that pass",
        "others": [],
    }
    found = doc.recommend(made("PASS", "PASS", "FAIL", keep="1.0,0.5,0.25"), {})
    assert found is not None
    assert found["reason"].endswith("the one sparse cell to pass")
    assert doc.recommend(made("PASS", "FAIL", keep="1.0,0.5"), {}) is None, "dense is no saving"


def test_activations_count_beside_attention() -> None:
    found = doc.recommend(made("PASS", "PASS", keep="0.5", ffn_keep="1.0,0.25"), {})
    assert found is not None
    assert (found["cell"], found["others"]) == ("top-k-keep-0.5-ffn-0.25", [])
    assert "saves 50.0 % of attention elements and 75.0 % of feed-forward activations" in found["reason"]


def test_dense_modules_are_told_of() -> None:
    document = made("PASS", "FAIL", keep="0.5,0.25")
    document["cells"][0]["attention"] = {"patched": 10, "modules": 12}
    found = doc.recommend(document, {})
    assert found is not None
    assert "of attention elements with 10 of 12 attention modules sparse: the one" in found["reason"]


def test_shares_of_different_things_are_not_ranked() -> None:
    document = made("PASS", "PASS", "PASS", methods="top-k,clustered", keep="0.5,0.25", clusters="4")
    found = doc.recommend(document, {})
    assert found == {
        "cell": "top-k-keep-0.25",
        "reason": "top-k, keep = 0.25 saves 75.0 % of attention elements; clustered, 4 clusters saves 60.0 % of "
        "attention scores: shares of different things are not compared: take one by their times (--bench)",
        "others": ["clustered-clusters-4"],
    }
    assert doc.recommend(document, {"top-k-keep-0.25": {"prefill": 2.0}}) == found, "one time says nothing"


def test_times_decide_between_different_things() -> None:
    document = made("PASS", "PASS", "PASS", methods="top-k,clustered", keep="0.5,0.25", clusters="4")
    times = {"top-k-keep-0.5": {"prefill": 9.0}, "top-k-keep-0.25": {"prefill": 1.0}}
    found = doc.recommend(document, times | {"clustered-clusters-4": {"prefill": 1.5}})
    assert found is not None
    assert (found["cell"], found["others"]) == ("clustered-clusters-4", [])
    assert found["reason"].endswith("the fastest of the 2 that save most of something")
    slower = {"top-k-keep-0.25": {"prefill": 1.0, "decode": 2.0}, "clustered-clusters-4": {"prefill": 1.5, "decode": 1}}
    found = doc.recommend(document, slower)
    assert found is not None
    assert (found["cell"], found["others"]) == ("top-k-keep-0.25", ["clustered-clusters-4"])
    assert found["reason"].endswith("none is faster in both phases")


def test_one_between_two_others_is_the_fastest_in_no_phase() -> None:
    document = made("PASS", "PASS", "PASS", keep="0.5", methods="top-k,clustered,clustered-plain", clusters="4")
    for entry, of in zip(document["cells"], ("elements", "scores", "activations"), strict=True):
        entry["saved"] = {"share": 0.5, "of": of}
    times = {"top-k-keep-0.5": (2, 1), "clustered-clusters-4": (1.5, 1.5), "clustered-plain-clusters-4": (1, 2)}
    speeds = {name: {"prefill": prefill, "decode": decode} for name, (prefill, decode) in times.items()}
    found = doc.recommend(document, speeds)
    assert found is not None
    assert [found["cell"], *found["others"]] == list(speeds)
    assert found["reason"].endswith("none is faster in both phases")
    speeds["clustered-clusters-4"]["prefill"] = 0.5
    found = doc.recommend(document, speeds)
    assert found is not None
    assert found["others"] == ["clustered-plain-clusters-4"], "slower than another in both phases"


def test_chains_that_cannot_be_planned_take_no_part_of_the_level() -> None:
    cells = make_cells("top-k,clustered", keep="1.0,0.5", clusters="4,2")
    document = doc.make_document(cells, {cell.name: "causal" for cell in cells[2:]}, run="r")
    assert [chain["level"] for chain in document["chains"]] == [0.025, 0.025]
    assert [entry["status"] for entry in document["cells"]] == ["waiting", "waiting", "refused", "refused"]


def test_whose_directory_it_is(tmp_path: Path) -> None:
    document = made("PASS", "FAIL", keep="1.0,0.5")
    place = tmp_path / "sweep"
    doc.check_output(place)
    assert doc.earlier(place, "r", force=False) is None
    doc.save_document(place, document)
    doc.check_output(place)
    assert doc.earlier(place, "r", force=False) == document
    with pytest.raises(UsageError, match=r"holds another sweep \(sparsify sweep\): give -o .* or --force"):
        doc.earlier(place, "other", force=False)
    assert doc.earlier(place, "other", force=True) is None
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no sweep"):
        doc.check_output(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema_version": 1, "kind": "sweep", "run": "r"}', "[" * 9999, '{"n": NaN}']
)
def test_a_damaged_file_is_no_sweep(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UsageError, match="that was damaged"):
        doc.earlier(tmp_path, "r", force=False)
    assert doc.earlier(tmp_path, "r", force=True) is None


def test_another_version_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"schema_version": 2, "kind": "sweep", "run": "r", "cells": []}))
    with pytest.raises(UsageError, match="another version"):
        doc.earlier(tmp_path, "r", force=False)


def test_only_what_a_sweep_wrote_is_removed(tmp_path: Path) -> None:
    doc.save_document(tmp_path, made("PASS", "FAIL", keep="1.0,0.5"))
    for name in ("recipes/a/sparsify.json", "calibration/sparsify.json", "mine/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    doc.remove_sweep(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == ["mine/notes.txt"]
