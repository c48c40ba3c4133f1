"""`sparsify sweep`: cells are recipes with evaluations, and a second run does only what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_language_models
from command_line import Sparsify, content, contents, refused
from hf_sparsify.evaluation.saved import ACTIVATIONS, ELEMENTS
from hf_sparsify.patcher.methods import TopKFeedForward
from hf_sparsify.patcher.recipe import load_recipe
from sweep_commands import ASK, BASE, TOP_K, Asked, cells, document

CELLS = [f"{method}-keep-{keep}" for method in ("top-k", "top-theta") for keep in (1.0, 0.5, 0.2)]


def test_cells_are_recipes_with_evaluations(sparsify: Sparsify, asked: Asked) -> None:
    done = sparsify(*ASK)
    assert done.code == 0
    assert done.err == ""
    assert (asked.dense, asked.patched) == (1, 6), "the dense model answers once for all cells"
    found = document()
    assert (found["kind"], found["ended"], found["dataset"]["items"]) == ("sweep", True, 6)
    assert [chain["level"] for chain in found["chains"]] == [0.0125, 0.0125]
    assert found["calibration"]["at"] == "keep = 0.5"
    assert list(cells()) == CELLS
    for name, entry in cells().items():
        results = json.loads(Path("sparsified-sweep", entry["results"]).read_text())
        assert entry["directory"] == f"recipes/{name}"
        assert results["recipe"] == f"sparsified-sweep/recipes/{name}"
        assert results["verdict"]["decision"] == entry["verdict"]["decision"] == "PASS"
        recipe = load_recipe(Path("sparsified-sweep", "recipes", name))
        assert bool(recipe.thresholds) == (name in ("top-theta-keep-0.5", "top-theta-keep-0.2"))
        assert (entry["kept_per_k"] is not None) == bool(recipe.thresholds)
        if entry["dense"]:
            assert (results["same_answer_share"], entry["saved"]["share"]) == (1, 0)
            assert results["distance"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    best = max(cells().values(), key=lambda entry: entry["saved"]["share"])
    assert found["recommended"]["cell"] == best["name"]
    assert f"recommended: {found['recommended']['reason']}" in done.out
    assert "next: sparsify report sparsified-sweep" in done.out
    assert "6 cells on 6 items of q.jsonl: F1, a drop of at most 100.0 points" in done.out
    assert content("sparsified-sweep/calibration")["calibration"]["budget"] == "keep = 0.5"
    budget = content("sparsified-sweep/recipes/top-theta-keep-0.2")["calibration"]["budget"]
    assert budget == "keep = 0.2 (calibrated at keep = 0.5)"
    assert not list(Path().rglob(".calibrating*"))


def test_a_cell_is_an_ordinary_recipe(sparsify: Sparsify, asked: Asked) -> None:
    assert sparsify(*TOP_K).code == 0
    done = sparsify(
        *("eval", "sparsified-sweep/recipes/top-k-keep-0.2", "-d", "q.jsonl"),
        *("--max-new-tokens", "2", "--max-drop", "100"),
    )
    assert "was there already, judged anew: sparsified-sweep/recipes/top-k-keep-0.2/eval/" in done.err
    assert asked.patched == 3
    assert sparsify("validate", "sparsified-sweep/recipes/top-k-keep-0.2").code == 0


def test_a_second_run_runs_nothing(sparsify: Sparsify, asked: Asked) -> None:
    first = sparsify(*ASK)
    before = {name: data for name, data in contents(Path("sparsified-sweep")).items() if not name.endswith(".json")}
    patched = asked.patched
    done = sparsify(*(part for part in ASK if part != "-q"))
    assert "was there already, judged anew: sparsified-sweep" in done.err
    assert done.out == first.out
    assert asked.patched == patched
    after = {name: data for name, data in contents(Path("sparsified-sweep")).items() if not name.endswith(".json")}
    assert after == before


def test_another_gate_judges_anew(sparsify: Sparsify, asked: Asked) -> None:
    assert sparsify(*TOP_K).code == 0
    assert sparsify(*TOP_K, "--max-drop", "1").code == 0
    assert sparsify(*TOP_K, "--max-drop", "1", "--require-conclusion").code == 5
    assert asked.patched == 3
    decisions = [entry["verdict"]["decision"] for entry in cells().values()]
    assert decisions == ["INCONCLUSIVE", "NOT TESTED", "NOT TESTED"]
    assert document()["recommended"] is None
    printed = sparsify(*TOP_K, "--max-drop", "1").out
    assert "top-k, keep = 1.0: INCONCLUSIVE: the drop may be more or less than the 1.0 points" in printed
    assert "only more items can make it pass" in printed


def test_json_is_what_was_written(sparsify: Sparsify) -> None:
    done = sparsify(*TOP_K, "--json")
    assert json.loads(done.out) == document()


def test_another_sweep_is_refused_unless_forced(sparsify: Sparsify, work: Path) -> None:
    assert sparsify(*TOP_K).code == 0
    before = contents(work)
    for other in (("--keep", "0.5,0.1"), ("--limit", "4"), ("--seed", "1"), ("--layers", "0")):
        refused(sparsify(*TOP_K, *other), 2, "holds another sweep (sparsify sweep llama")
    assert contents(work) == before
    done = sparsify(*TOP_K, "--keep", "0.5", "--force")
    assert done.code == 0, done.err
    assert [path.name for path in Path("sparsified-sweep/recipes").iterdir()] == ["top-k-keep-0.5"]
    assert sparsify(*TOP_K, "-o", "elsewhere").code == 0


def test_a_directory_of_something_else_is_never_taken(sparsify: Sparsify, recipe: Path) -> None:
    before = contents(recipe)
    refused(sparsify(*TOP_K, "-o", "sparsified", "--force"), 2, "exists already and holds no sweep")
    assert contents(recipe) == before


def test_calibration_never_sees_what_is_evaluated(sparsify: Sparsify, work: Path) -> None:
    asked, others = (work / "q.jsonl").read_text(), (work / "train.jsonl").read_text()
    (work / "train.jsonl").write_text(others.replace('"id": "q', '"id": "t') + asked.replace('"id": "q', '"id": "s'))
    done = sparsify(*ASK, "--samples", "12")
    assert (done.code, done.err) == (0, "")
    assert document()["calibration"]["samples"] == 6
    (work / "train.jsonl").write_text(asked)
    refused(sparsify(*ASK, "--force"), 2, "every item of train.jsonl is evaluated, so none is left to calibrate on")


def test_thresholds_that_keep_too_much_are_fitted_anew(sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_sparsify.commands.calibrator.OFF", -1.0)
    assert sparsify(*ASK, "--methods", "top-theta").code == 0
    assert [entry["recalibrated"] for entry in cells().values()] == [False, False, True]
    record = content("sparsified-sweep/recipes/top-theta-keep-0.2")["calibration"]
    assert record["budget"] == "keep = 0.2"
    assert Path("sparsified-sweep/recipes/top-theta-keep-0.2/histograms.safetensors").exists()
    assert sparsify(*ASK, "--methods", "top-theta").code == 0
    assert [entry["recalibrated"] for entry in cells().values()] == [False, False, True], "as it was"


def test_feed_forward_layers(sparsify: Sparsify) -> None:
    done = sparsify(*BASE, "--methods", "none,top-k", "--keep", "0.5", "--ffn-keep", "1.0,0.5")
    assert done.code == 0
    assert list(cells()) == ["ffn-keep-1.0", "ffn-keep-0.5", "top-k-keep-0.5", "top-k-keep-0.5-ffn-0.5"]
    assert [entry["saved"]["of"] for entry in cells().values()] == [ACTIVATIONS] * 2 + [ELEMENTS] * 2
    assert [entry["also_saved"] and entry["also_saved"]["of"] for entry in cells().values()] == [
        *[None] * 3,
        ACTIVATIONS,
    ]
    assert [chain["name"] for chain in document()["chains"]] == ["ffn", "top-k", "top-k-ffn-0.5"]
    assert document()["recommended"]["cell"] == "top-k-keep-0.5-ffn-0.5"


def test_feed_forward_layers_at_counts(sparsify: Sparsify) -> None:
    done = sparsify(*BASE, "--methods", "none", "--ffn-k", "4,16")
    assert done.code == 0, done.err
    assert [(entry["name"], entry["saved"]["of"]) for entry in cells().values()] == [
        ("ffn-k-16", ACTIVATIONS),
        ("ffn-k-4", ACTIVATIONS),
    ]
    assert set(load_recipe("sparsified-sweep/recipes/ffn-k-4").plan.values()) == {TopKFeedForward(k=4)}
    assert " activations " in done.out
    assert document()["recommended"]["cell"] == "ffn-k-4"


def test_the_same_modules_stay_dense_for_every_method(sparsify: Sparsify, work: Path) -> None:
    tiny_language_models.save("bert-qa", work / "deep", num_hidden_layers=10)
    asked = ("sweep", "deep", "-d", "q.jsonl", "--max-drop", "100", "-q")
    grid = ("--methods", "clustered,top-k", "--clusters", "4", "--keep", "0.5")
    assert sparsify(*asked, *grid).code == 0
    assert [entry["attention"] for entry in cells().values()] == [{"patched": 8, "modules": 10}] * 2
    plans = [set(load_recipe(Path("sparsified-sweep/recipes", name)).plan) for name in cells()]
    assert plans[0] == plans[1]
    assert "with 8 of 10 attention modules sparse" in document()["recommended"]["reason"]
    results = json.loads(Path("sparsified-sweep", cells()["top-k-keep-0.5"]["results"]).read_text())
    patched = 1 - results["kept"]["total"]["kept_share"]
    assert cells()["top-k-keep-0.5"]["saved"] == {"share": pytest.approx(0.8 * patched), "of": ELEMENTS}
    assert sparsify(*asked, *grid, "--skip-layers", "none", "-o", "all").code == 0
    assert [entry["attention"] for entry in cells("all").values()] == [{"patched": 10, "modules": 10}] * 2


def test_progress_counts_all_cells(sparsify: Sparsify) -> None:
    done = sparsify(*(part for part in ASK if part != "-q"))
    lines = [line for line in done.err.splitlines() if line.startswith("sweeping: ")]
    total = 6 * 6 + 2 * 4  # items of all cells, samples of two calibrations at most
    assert lines[-1].startswith(f"sweeping: {total} of {total}, ")
    assert all(f" of {total}, about " in line for line in lines[:-1])


@pytest.mark.parametrize("place", ["../outside.json", "/{work}/outside.json"])
def test_times_outside_the_sweep_are_not_taken(place: str, sparsify: Sparsify, work: Path) -> None:
    assert sparsify(*TOP_K).code == 0
    (work / "outside.json").write_text(json.dumps({"lengths": [{"tokens": 16, "phases": {}}]}))
    written = document()
    written["cells"][0]["bench"] = place.format(work=work)
    Path("sparsified-sweep/sweep.json").write_text(json.dumps(written))
    assert sparsify(*TOP_K).code == 0
    assert [entry["bench"] for entry in cells().values()] == [None] * 3


@pytest.mark.parametrize("kept", ["much", [1], True, {}])
def test_what_was_kept_is_a_number_or_measured_anew(kept: object, sparsify: Sparsify) -> None:
    assert sparsify(*ASK, "--methods", "top-theta", "--keep", "0.5").code == 0
    written = document()
    before = written["cells"][0]["kept_per_k"]
    written["cells"][0]["kept_per_k"] = kept
    Path("sparsified-sweep/sweep.json").write_text(json.dumps(written))
    assert sparsify(*ASK, "--methods", "top-theta", "--keep", "0.5").code == 0
    assert document()["cells"][0]["kept_per_k"] == before


@pytest.mark.slow
def test_times_are_taken_once(sparsify: Sparsify) -> None:
    timed = (*BASE, "--methods", "top-k", "--keep", "1.0,0.5", "--bench", "--lengths", "72")
    assert sparsify(*timed[:-3]).code == 0
    assert [entry["bench"] for entry in cells().values()] == [None, None]
    done = sparsify(*timed)
    assert done.code == 0, done.err
    places = [entry["bench"] for entry in cells().values()]
    for place in places:
        found = json.loads(Path("sparsified-sweep", place).read_text())
        assert [entry["tokens"] for entry in found["lengths"]] == [72]
    assert "prefill, x" in done.out
    assert "dense / patched at 72 tokens" in done.out
    sparsify(*timed)
    assert [entry["bench"] for entry in cells().values()] == places
    sparsify(*timed[:-1], "80")
    assert all(entry["bench"] not in places for entry in cells().values()), "other lengths are timed anew"
