"""`sparsify tune` from the command line to the files that it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Done, Sparsify, contents, refused
from hf_sparsify.evaluation.tasks.generative import Generative
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.recipe import is_recipe, load_recipe

SMALL = ("--samples", "3", "--keep", "0.5,0.2", "--max-new-tokens", "2", "--batch-size", "4")


@pytest.fixture(autouse=True)
def data(work: Path) -> None:
    """Questions to judge on and other ones to tune on."""
    tiny_language_models.save_questions(work / "q.jsonl", 5)
    tiny_language_models.save_questions(work / "train.jsonl", 4, people=5)


@pytest.fixture
def tune(sparsify: Sparsify) -> Any:
    """Tunes a tiny model, with any drop allowed unless told otherwise."""

    def run(*options: str, model: str = "llama", drop: str = "100") -> Done:
        asked = ("-d", "q.jsonl", "--calibrate-on", "train.jsonl", "--max-drop", drop)
        return sparsify("tune", model, *asked, *SMALL, *options)

    return run


def record(directory: str = "sparsified-tuned") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(directory) / "tune" / "tune.json").read_text())
    return found


def test_a_tuned_recipe_is_an_ordinary_recipe_with_its_results(tune: Any, sparsify: Sparsify) -> None:
    done = tune()
    assert done.code == 0, done.err
    found = record()
    assert found["ended"] is True
    assert (found["kind"], found["goal"], found["schema_version"]) == ("tune", "kept", 1)
    names = [chain["cells"] for chain in found["chains"]]
    assert [cell["name"] for cell in found["cells"]] == [*names[0], *names[1]]
    assert names[1] == ["uniform-keep-0.5", "uniform-keep-0.2"]
    for cell in found["cells"]:
        assert cell["verdict"]["decision"] == "PASS"
        results = json.loads((Path("sparsified-tuned/tune") / cell["results"]).read_text())
        assert results["verdict"]["decision"] == "PASS"
        assert is_recipe(Path("sparsified-tuned/tune") / cell["directory"])
        assert 0 < cell["saved"]["share"] < 1
    best = found["recommended"]["cell"]
    assert best == names[0][-1]
    recommended = load_recipe("sparsified-tuned")
    assert recommended.plan == load_recipe(Path("sparsified-tuned/tune/recipes") / best).plan
    assert {name: method.keep for name, method in recommended.plan.items()} == next(
        cell["keeps"] for cell in found["cells"] if cell["name"] == best
    )
    assert found["comparison"]["sentence"].startswith("tuned keeps ")
    assert found["comparison"]["sentence"] in done.out
    again = sparsify("eval", "sparsified-tuned", "-d", "q.jsonl", "--max-new-tokens", "2", "--batch-size", "4")
    assert "nothing was run" in again.out, "its results are there"


def test_items_that_are_evaluated_are_not_tuned_on(tune: Any, work: Path) -> None:
    other_ids = (work / "train.jsonl").read_text().replace('"id": "q', '"id": "t')
    (work / "train.jsonl").write_text((work / "q.jsonl").read_text() + other_ids)
    assert tune("--samples", "9").code == 0
    assert record()["tuned_on"]["items"] == 4, "of nine items five are evaluated"
    judged = {json.loads(line)["id"] for line in (work / "q.jsonl").read_text().splitlines()}
    (work / "train.jsonl").write_text((work / "q.jsonl").read_text())
    refused(tune("--force"), 2, "every item of train.jsonl is evaluated")
    assert tune("--force", "--limit", "3").code == 0
    assert record()["tuned_on"]["items"] == len(judged) - 3


def test_without_a_pass_there_is_no_recipe(tune: Any) -> None:
    done = tune(drop="0.5")
    assert done.code == 5, done.err
    found = record()
    assert (found["recommended"], found["ended"]) == (None, True)
    assert not is_recipe("sparsified-tuned")
    assert "nothing is recommended: too few items to tell" in done.out
    assert {cell["verdict"]["decision"] for cell in found["cells"]} == {"INCONCLUSIVE", "NOT TESTED"}
    assert is_recipe("sparsified-tuned/tune/recipes/uniform-keep-0.5")


def test_a_recipe_that_no_longer_passes_goes(tune: Any) -> None:
    assert tune().code == 0
    assert is_recipe("sparsified-tuned")
    done = tune(drop="0.5")
    assert done.code == 5
    assert "the sensitivity map is there already" in done.err
    assert not is_recipe("sparsified-tuned")


def test_the_same_command_runs_nothing_again(tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tune().code == 0
    before = contents(Path("sparsified-tuned/tune/recipes"))
    first = record()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was run again")

    monkeypatch.setattr("hf_sparsify.commands.tune.measure", never)
    monkeypatch.setattr("hf_sparsify.commands.tune_cells.measure_cells", never)
    monkeypatch.setattr("hf_sparsify.evaluation.run._Run", never)
    done = tune()
    assert done.code == 0, done.err
    assert contents(Path("sparsified-tuned/tune/recipes")).keys() == before.keys()
    assert record()["cells"] == first["cells"]


@pytest.mark.parametrize(
    "where",
    [
        "hf_sparsify.commands.tune.measure",
        "hf_sparsify.commands.tune_cells.measure_cells",
        "hf_sparsify.evaluation.run.Record",
        "hf_sparsify.commands.tune.write_recommended",
    ],
)
def test_ctrl_c_is_gone_on_from(where: str, tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tune("-o", "undisturbed").code == 0
    with monkeypatch.context() as patching:

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patching.setattr(where, interrupt)
        done = tune()
    assert (done.code, done.out) == (130, "")
    assert "the same command goes on from here" in done.err
    assert not is_recipe("sparsified-tuned")
    assert record()["ended"] is False
    assert tune().code == 0
    for name in ("cells", "recommended", "comparison"):
        assert record()[name] == record("undisturbed")[name]


@pytest.mark.parametrize(("failing", "cell"), [(0, 0), (-1, -1)])
def test_a_candidate_that_fails_does_not_end_the_tuning(
    failing: int, cell: int, tune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, asked = Generative.predict, []

    def spoilt(task: Generative, batch: Any, meter: Meter | None = None) -> Any:
        if meter is not None:
            asked.append(batch)
            if len(asked) - 1 == failing % 4:
                raise MemoryError
        return predict(task, batch, meter)

    with monkeypatch.context() as patching:
        patching.setattr(Generative, "predict", spoilt)
        done = tune("--keep", "0.5,0.2")
    assert done.code == 0, done.err
    found = record()["cells"]
    assert [entry["status"] for entry in found].count("failed") == 1
    assert found[cell]["error"].startswith("out of memory")
    assert found[cell]["verdict"] is None
    assert "failed: out of memory" in done.out
    assert tune().code == 0
    assert all(entry["status"] == "done" for entry in record()["cells"])


def test_without_a_candidate_that_runs_there_is_one_sentence(tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(*_: Any) -> Any:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr("hf_sparsify.evaluation.run._Run._patched", spoilt)
    refused(tune("--quiet"), 1, "no candidate could be run: no kernel for this")


def test_another_tuning_in_the_directory_is_not_replaced_unless_forced(tune: Any) -> None:
    assert tune().code == 0
    before = contents(Path("sparsified-tuned"))
    refused(tune("--seed", "1"), 2, "holds another tuning: use --force")
    assert contents(Path("sparsified-tuned")) == before
    assert tune("--seed", "1", "--force").code == 0
    assert record()["seed"] == 1


def test_another_uniform_keep_is_another_tuning(tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patching:
        first = "model.layers.0.self_attn"
        patching.setattr("hf_sparsify.commands.tune.dense_by_default", lambda *_, **__: {first: 0})
        assert tune().code == 0
    assert first not in record()["cells"][-1]["keeps"]
    refused(tune("--skip-layers", "none"), 2, "holds another tuning: use --force")
    assert tune("--skip-layers", "none", "--force").code == 0
    assert first in record()["cells"][-1]["keeps"]


def test_a_recipe_in_the_directory_is_not_replaced_unless_forced(tune: Any, recipe: Path) -> None:
    refused(tune("-o", "sparsified"), 2, "already holds another recipe: use --force")
    assert tune("-o", "sparsified", "--force").code == 0
    assert load_recipe("sparsified").plan != {}
    assert record("sparsified")["recommended"] is not None


def test_top_theta_is_calibrated_once_for_all_candidates(tune: Any, sparsify: Sparsify) -> None:
    done = tune("--attention", "top-theta")
    assert done.code == 0, done.err
    found = record()
    assert found["calibration"]["at"] == "keep = 0.2"
    best = load_recipe("sparsified-tuned")
    assert {method.name for method in best.plan.values()} == {"top-theta"}
    assert best.thresholds
    assert best.calibration is not None
    assert best.calibration.samples == 3
    assert {method.name for method in (best.before_calibration or {}).values()} == {"top-k"}
    assert all(cell["kept_per_k"] > 0.5 for cell in found["cells"])
    assert sparsify("validate", "sparsified-tuned", "--no-verify").code == 0
    assert "x k" in done.out


def test_thresholds_that_keep_too_much_are_fitted_at_the_allocation(tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theta = ("--attention", "top-theta", "--keep", "0.5,0.2", "--skip-layers", "none")
    with monkeypatch.context() as patching:
        patching.setattr("hf_sparsify.commands.calibrator.OFF", -1.0)
        assert tune(*theta).code == 0
    found = {cell["name"]: cell for cell in record()["cells"]}
    assert [found[f"uniform-keep-{keep}"]["recalibrated"] for keep in (0.5, 0.2)] == [True, False], "0.2 is the middle"
    assert found[record()["recommended"]["cell"]]["recalibrated"]
    calibration = load_recipe("sparsified-tuned").calibration
    assert calibration is not None
    assert "calibrated at" not in calibration.budget
    with monkeypatch.context() as patching:
        patching.setattr("hf_sparsify.commands.calibrator.calibrate_target", None)
        assert tune(*theta).code == 0, "what was calibrated is there"
    assert {cell["name"]: cell for cell in record()["cells"]} == found
    assert tune(*theta, "--samples", "2", "--force").code == 0
    assert not any(cell["recalibrated"] for cell in record()["cells"] if abs(cell["kept_per_k"] - 1) <= 0.1)
    calibration = load_recipe("sparsified-tuned/tune/calibration").calibration
    assert calibration is not None
    assert calibration.samples == 2, "that of the tuning before is gone"


@pytest.mark.parametrize(
    ("options", "unit"),
    [
        (("--ffn", "top-k"), "multiply-adds of attention and feed-forward layers"),
        (("--goal", "v-rows"), "V rows in decoding"),
        (("--ffn", "top-k", "--attention", "none"), "feed-forward activations"),
    ],
)
def test_other_goals_and_feed_forward_layers(options: tuple[str, ...], unit: str, tune: Any) -> None:
    done = tune(*options, "--quiet", "--json", model="t5")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert done.err == ""
    plan = load_recipe("sparsified-tuned").plan
    feed_forward = any(method.name == "top-k-feed-forward" for method in plan.values())
    assert feed_forward == ("--ffn" in options)
    if "v-rows" in options:
        assert not any(name.startswith("encoder") for name in plan)
    assert (found["unit"], found["cells"][0]["saved"]["of"]) == (unit, unit)
    assert unit in found["comparison"]["sentence"]


def test_time_is_measured_where_it_is_the_goal(tune: Any) -> None:
    done = tune("--goal", "latency")
    # On inputs this short no module need be faster.
    assert done.code == 0 or (done.code == 1 and "no module is faster" in done.err)
    modules = json.loads(Path("sparsified-tuned/tune/sensitivity.json").read_text())["modules"]
    assert all(time > 0 for module in modules.values() for time in module["microseconds"])


def test_models_with_heads_and_encoders_are_tuned(tune: Any) -> None:
    assert tune(model="bert-qa").code == 0
    assert tune("-o", "encoder", model="bert").code == 0
    assert all(cell["tuning_kl"] is None for cell in record("encoder")["cells"])
