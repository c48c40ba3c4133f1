"""`sparsify sweep`: cells are recipes with evaluations, one fails alone, and a second run does only what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Sparsify, content, contents, refused
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.saved import ACTIVATIONS, ELEMENTS
from hf_sparsify.evaluation.tasks.generative import Generative
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.recipe import load_recipe

BASE = ("sweep", "llama", "-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "-q")
ASK = (*BASE, "--keep", "1.0,0.5,0.2", "--calibrate-on", "train.jsonl", "--samples", "4")
TOP_K = (*BASE, "--methods", "top-k", "--keep", "1.0,0.5,0.2")
CELLS = [f"{method}-keep-{keep}" for method in ("top-k", "top-theta") for keep in (1.0, 0.5, 0.2)]


def document(directory: str = "sparsified-sweep") -> dict[str, Any]:
    made: dict[str, Any] = json.loads(Path(directory, "sweep.json").read_text())
    return made


def cells(directory: str = "sparsified-sweep") -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in document(directory)["cells"]}


def statuses(directory: str = "sparsified-sweep") -> list[str]:
    return [entry["status"] for entry in cells(directory).values()]


class Asked:
    """Counts the batches that each arm answers, and lets one patched pass of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dense = self.patched = 0
        self.failing: int | None = None
        self.error: Exception = RuntimeError("no kernel for this\nand more lines")
        predict = Generative.predict

        def counted(task: Generative, batch: Sequence[Any], meter: Meter | None = None) -> Any:
            if meter is None:
                self.dense += 1
            else:
                self.patched += 1
                if self.patched - 1 == self.failing:
                    raise self.error
            return predict(task, batch, meter)

        monkeypatch.setattr(Generative, "predict", counted)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


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


def test_cells_that_cannot_be_planned(sparsify: Sparsify, work: Path) -> None:
    done = sparsify(*BASE, "--methods", "clustered,top-k", "--clusters", "4,2", "--keep", "0.5")
    assert done.code == 0
    assert statuses() == ["refused", "refused", "done"]
    assert "causal self-attention" in cells()["clustered-clusters-4"]["error"]
    assert "clustered, 4 clusters; clustered, 2 clusters: refused: clustered attention is for" in " ".join(
        done.out.split()
    )
    assert cells()["top-k-keep-0.5"]["verdict"]["level"] == 0.025
    refused(sparsify(*BASE, "--methods", "clustered", "-o", "out"), 4, "bidirectional self-attention only")
    assert not (work / "out").exists()


def test_a_cell_that_fails_leaves_the_others(sparsify: Sparsify, asked: Asked) -> None:
    asked.failing = 4  # of the second batch the second cell
    done = sparsify(*TOP_K, "--batch-size", "2")
    assert done.code == 0
    assert statuses() == ["done", "failed", "done"]
    assert cells()["top-k-keep-0.5"]["error"] == "no kernel for this"
    assert cells()["top-k-keep-0.2"]["verdict"]["decision"] == "PASS", "what was not run is left out of the sequence"
    assert asked.patched == 3 + 3 + 2
    assert "top-k, keep = 0.5: failed: no kernel for this" in done.out
    asked.patched, asked.failing = 0, None
    again = sparsify(*TOP_K, "--batch-size", "2")
    assert statuses() == ["done", "done", "done"]
    assert asked.patched == 2, "only the failed cell goes on"
    assert "failed" not in again.out


def test_out_of_memory_is_one_sentence(sparsify: Sparsify, asked: Asked) -> None:
    asked.failing, asked.error = 1, RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
    assert sparsify(*TOP_K).code == 0
    assert cells()["top-k-keep-0.5"]["error"].startswith("out of memory: lower --batch-size")


def test_a_smaller_batch_goes_on_in_the_same_sweep(sparsify: Sparsify, asked: Asked) -> None:
    asked.failing, asked.error = 1, RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
    assert sparsify(*TOP_K).code == 0
    asked.failing = None
    assert sparsify(*TOP_K, "--batch-size", "3").code == 0
    assert statuses() == ["done"] * 3


def test_no_sparse_cell_could_be_run(sparsify: Sparsify, asked: Asked) -> None:
    asked.failing = 1
    done = sparsify(*BASE, "--methods", "top-k", "--keep", "1.0,0.5")
    assert done.code == 1
    assert statuses() == ["done", "failed"]
    assert "recommended: none" in done.out


def test_an_error_that_is_no_cell_s_ends_all(sparsify: Sparsify, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.failing, asked.error = 1, ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        sparsify(*TOP_K)
    assert statuses() == ["waiting"] * 3
    assert document()["ended"] is False
    asked.failing = None
    assert sparsify(*TOP_K).code == 0
    assert statuses() == ["done"] * 3


def test_calibration_never_sees_what_is_evaluated(sparsify: Sparsify, work: Path) -> None:
    asked, others = (work / "q.jsonl").read_text(), (work / "train.jsonl").read_text()
    (work / "train.jsonl").write_text(others.replace('"id": "q', '"id": "t') + asked.replace('"id": "q', '"id": "s'))
    done = sparsify(*ASK, "--samples", "12")
    assert (done.code, done.err) == (0, "")
    assert document()["calibration"]["samples"] == 6
    (work / "train.jsonl").write_text(asked)
    refused(sparsify(*ASK, "--force"), 2, "every item of train.jsonl is evaluated, so none is left to calibrate on")


def test_calibration_that_fails(sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise DataError("no row sees more keys than its k")

    with monkeypatch.context() as patching:
        patching.setattr("hf_sparsify.commands.calibrator.calibrate_target", failing)
        assert sparsify(*ASK).code == 0
    assert statuses() == ["done", "done", "done", "done", "failed", "failed"]
    assert cells()["top-theta-keep-0.2"]["error"] == "calibration failed: no row sees more keys than its k"
    assert cells()["top-theta-keep-1.0"]["verdict"]["decision"] == "PASS"
    assert sparsify(*ASK).code == 0
    assert statuses() == ["done"] * 6


def test_no_cell_could_be_made(sparsify: Sparsify) -> None:
    done = sparsify(*BASE, "--methods", "top-theta", "--k", "5000", "--calibrate-on", "train.jsonl", "--samples", "4")
    assert (done.code, statuses()) == (1, ["failed"])
    assert "top-theta, k = 5000: failed: calibration failed: no row" in done.out
    assert "recommended: none" in done.out
    assert document()["ended"] is True


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
