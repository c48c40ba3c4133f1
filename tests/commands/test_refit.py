"""`sparsify patch --thresholds`: thresholds at another k from a calibration, without calibrating again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from command_line import Sparsify, content, contents, files, refused, warnings_of
from hf_sparsify.patcher.recipe import load_recipe

WROTE = ["histograms.safetensors", "sparsify.json", "thresholds.safetensors"]
WARNING = "warning: in calibration deeper layers saw activations sparse at k = 4, so kept / k may be off at "


def test_another_k_gives_a_calibrated_recipe(sparsify: Sparsify, calibrated: Path, work: Path) -> None:
    before = contents(calibrated)
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three")
    assert done.code == 0, done.err
    assert contents(calibrated) == before
    assert files(work / "three") == WROTE
    assert "top-theta, k = 3, sdc+vmc, max-relative" in done.out
    assert "top-k-feed-forward, keep = 0.5" in done.out
    assert "cached decoding equals the full forward pass" in done.out
    assert "kept / k on 2 items of q.jsonl: mean " in done.out, "the two that calibration left out"
    assert "wrote three; next: sparsify eval three" in done.out
    assert "not calibrated" not in done.out
    assert warnings_of(done) == [f"{WARNING}k = 3"]
    old, new = content("sparsified"), content("three")
    assert new["calibration"]["budget"] == "k = 3 (calibrated at k = 4)"
    assert {**new["calibration"], "budget": "k = 4"} == old["calibration"]
    for plan in ("plan", "before_calibration"):
        assert list(new[plan]) == list(old[plan])
        for name, method in old[plan].items():
            assert new[plan][name] == ({**method, "k": 3} if "k" in method else method)
    assert (work / "three/histograms.safetensors").read_bytes() == before["histograms.safetensors"]
    assert sparsify("validate", "three").code == 0
    options = ("-d", "q.jsonl", "--max-new-tokens", "2", "--limit", "4", "--max-drop", "100", "--json")
    assert json.loads(sparsify("eval", "three", *options).out)["kept"]["total"]["kept_per_k"] > 0
    as_top_k = json.loads(sparsify("eval", "three", "--as-top-k", *options).out)
    assert as_top_k["kept"]["total"]["kept_per_k"] == 1
    assert {method["k"] for method in as_top_k["plan"].values() if "k" in method} == {3}


def test_min_length_goes_from_patch_to_calibrate_to_another_k(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", "llama", "--k", "4", "--min-length", "9")
    assert done.code == 0, done.err
    assert "top-k, k = 4, dense below 9 keys, sdc+vmc" in done.out
    done = sparsify("calibrate", "-d", "q.jsonl", "--samples", "4")
    assert done.code == 0, done.err
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three")
    assert done.code == 0, done.err
    assert "top-theta, k = 3, dense below 9 keys, sdc+vmc, post-softmax" in done.out
    for name in ("sparsified", "three"):
        loaded = load_recipe(name)
        assert {method.min_length for method in loaded.plan.values()} == {9}  # type: ignore[union-attr]
        assert {table.shortest for table in loaded.thresholds.values()} == {9}
    options = ("-d", "q.jsonl", "--max-new-tokens", "2", "--limit", "4", "--max-drop", "100", "--json")
    kept = json.loads(sparsify("eval", "three", *options).out)["kept"]["total"]
    assert kept["rows_without_threshold"] == 0
    assert kept["long_rows"] > 0


def test_at_its_own_k_the_thresholds_are_those_of_calibration(sparsify: Sparsify, calibrated: Path) -> None:
    done = sparsify("patch", "--thresholds", "sparsified", "-o", "same", "-q", "--no-verify")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert contents(Path("same")) == contents(calibrated)


def test_there_and_back_again(sparsify: Sparsify, calibrated: Path) -> None:
    assert sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three", "-q").code == 0
    done = sparsify("patch", "--thresholds", "three", "--k", "2", "-o", "two", "-q")
    assert warnings_of(done) == [f"{WARNING}k = 2"]
    assert content("two")["calibration"]["budget"] == "k = 2 (calibrated at k = 4)"
    done = sparsify("patch", "--thresholds", "three", "--k", "4", "-o", "four", "-q")
    assert warnings_of(done) == []
    assert contents(Path("four")) == contents(calibrated)


def test_a_fraction_instead_of_k(sparsify: Sparsify, calibrated: Path) -> None:
    assert sparsify("patch", "--thresholds", "sparsified", "--keep", "0.25", "-o", "quarter").code == 0
    recipe = load_recipe("quarter")
    methods = [recipe.plan[name] for name in recipe.thresholds]
    assert {(method.k, method.keep) for method in methods} == {(None, 0.25)}  # type: ignore[union-attr]
    assert content("quarter")["calibration"]["budget"] == "keep = 0.25 (calibrated at k = 4)"


def test_a_smaller_k_has_higher_thresholds(sparsify: Sparsify, calibrated: Path) -> None:
    assert sparsify("patch", "--thresholds", "sparsified", "--k", "2", "-o", "two").code == 0
    four, two = load_recipe("sparsified").thresholds, load_recipe("two").thresholds
    assert list(two) == list(four)
    for name, table in two.items():
        assert table.shortest == 3
        assert bool((table.theta[:, -1] > four[name].theta[:, -1]).all())


def test_twice_is_fine_and_another_recipe_needs_force(sparsify: Sparsify, calibrated: Path) -> None:
    command = ("patch", "--thresholds", "sparsified", "--k", "3")
    assert sparsify(*command, "-o", "three").code == 0
    before = contents(Path("three"))
    assert sparsify(*command, "-o", "three").code == 0
    assert contents(Path("three")) == before
    refused(sparsify("patch", "--thresholds", "sparsified", "--k", "2", "-o", "three"), 2, "already holds another")
    own = contents(calibrated)
    refused(sparsify(*command), 2, "the thresholds come from sparsified: use -o for another directory, or --force")
    assert (contents(Path("three")), contents(calibrated)) == (before, own)
    assert sparsify(*command, "--force").code == 0
    assert contents(calibrated) == before


def test_the_model_may_be_named_where_it_moved(sparsify: Sparsify, work: Path) -> None:
    shutil.copytree(work / "llama", work / "mine")
    assert sparsify("patch", "mine", "--k", "4", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl").code == 0
    (work / "mine").rename(work / "renamed")
    command = ("--thresholds", "sparsified", "--k", "3", "-o", "three")
    refused(sparsify("patch", *command), 1, "is not there any more: name where it is as MODEL")
    done = sparsify("patch", "renamed", *command)
    assert done.code == 0, done.err
    assert content("three")["base_model"]["id"] == str((work / "renamed").resolve())


def test_a_plan_edited_by_hand(sparsify: Sparsify, calibrated: Path) -> None:
    good = content("sparsified")
    name = "model.layers.0.self_attn"
    command = ("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three", "--no-verify")
    for edit, sentence in (
        ({"k": 5}, "were fitted at k = 4"),
        ({"placement": "pre-softmax"}, "are for max-relative placement, the plan asks for pre-softmax"),
    ):
        edited = {**good, "plan": {**good["plan"], name: {**good["plan"][name], **edit}}}
        (calibrated / "sparsify.json").write_text(json.dumps(edited))
        refused(sparsify(*command), 4, sentence)
    fewer = {key: method for key, method in good["plan"].items() if key != name}
    (calibrated / "sparsify.json").write_text(json.dumps({**good, "plan": fewer}))
    done = sparsify(*command)
    assert done.code == 0, done.err
    assert list(content("three")["plan"]) == list(fewer), "a module that was taken out stays out"
    assert "never saw" not in done.out


def test_the_mean_estimator_is_for_its_own_k(sparsify: Sparsify) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--estimator", "mean", "--alpha", "0.5").code == 0
    done = sparsify("patch", "--thresholds", "sparsified", "-o", "four", "--no-verify")
    assert done.code == 0, done.err
    assert warnings_of(done) == []
    assert contents(Path("four")) == contents(Path("sparsified"))
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three")
    assert done.code == 0, done.err
    assert warnings_of(done)[0] == (
        "warning: the mean estimator can be read at k = 4 alone, so these thresholds are count-matched; for mean ones "
        "run `sparsify calibrate` with the new budget"
    )
    found = content("three")["calibration"]
    assert (found["estimator"], found["alpha"]) == ("count-matched", 0.0)
    assert sparsify("validate", "three").code == 0


def test_the_offline_denominator_follows_k(sparsify: Sparsify) -> None:
    options = ("--attention", "top-theta", "--placement", "pre-softmax", "--compensation", "sdc+vmc", "--no-verify")
    assert sparsify("patch", "llama", "--k", "4", *options).code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--denominator", "offline").code == 0
    assert sparsify("patch", "--thresholds", "sparsified", "--k", "2", "-o", "two").code == 0
    four, two = load_recipe("sparsified").thresholds, load_recipe("two").thresholds
    for name, table in two.items():
        fewer = four[name].dropped
        assert table.dropped is not None
        assert fewer is not None
        assert bool((table.dropped[:, -1] > fewer[:, -1]).all())


def test_the_rounded_denominator_stays(sparsify: Sparsify) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--denominator", "rounded", "--no-verify").code == 0
    assert {method.describe() for method in load_recipe("sparsified").plan.values()} == {
        "k = 4, sdc+vmc, rounded denominator"
    }
    assert sparsify("calibrate", "-d", "q.jsonl").code == 0
    assert sparsify("patch", "--thresholds", "sparsified", "--k", "2", "-o", "two").code == 0
    for name, k in (("sparsified", 4), ("two", 2)):
        recipe = load_recipe(name)
        assert {method.describe() for method in recipe.plan.values()} == {
            f"k = {k}, sdc+vmc, post-softmax, rounded denominator"
        }
        assert recipe.before_calibration is not None
        assert {method.describe() for method in recipe.before_calibration.values()} == {
            f"k = {k}, sdc+vmc, rounded denominator"
        }
    exact = ("--denominator", "exact", "--compensation", "none")
    assert sparsify("calibrate", "-d", "q.jsonl", *exact).code == 0
    assert {method.describe() for method in load_recipe("sparsified").plan.values()} == {"k = 4, post-softmax"}


def test_patching_over_a_calibrated_recipe_leaves_no_histograms(sparsify: Sparsify, calibrated: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--force", "--no-verify").code == 0
    assert files(calibrated) == ["sparsify.json"]
