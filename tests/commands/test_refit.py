"""`sparsify patch --thresholds`: thresholds at another k from a calibration, without calibrating again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
import torch
from command_line import Done, Sparsify, contents, files, refused
from hf_sparsify.calibration.histogram_file import load_histograms, save_histograms
from hf_sparsify.files import sha256
from hf_sparsify.patcher.recipe import load_recipe

WROTE = ["histograms.safetensors", "sparsify.json", "thresholds.safetensors"]
WARNING = "warning: in calibration deeper layers saw activations sparse at k = 4, so kept / k may be off at "


@pytest.fixture
def calibrated(sparsify: Sparsify, work: Path) -> Path:
    """./sparsified for the tiny Llama, calibrated at k = 4 with options of its own, and one dense FFN."""
    options = ("--attention", "top-theta", "--placement", "max-relative", "--compensation", "sdc+vmc", "--no-verify")
    ffn = ("--ffn", "top-k", "--set", "re:.*1.mlp.*=none")
    assert sparsify("patch", "llama", "--k", "4", *options, *ffn).code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4").code == 0
    return work / "sparsified"


def content(folder: Path | str) -> dict[str, Any]:
    """What sparsify.json says."""
    made: dict[str, Any] = json.loads((Path(folder) / "sparsify.json").read_text())
    return made


def warnings_of(done: Done) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith("warning: ")]


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


def test_the_source_is_not_written_over_before_the_model_is_loaded(
    sparsify: Sparsify, calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_sparsify.commands.target.load_named", None)
    for target in ((), ("-o", "./sparsified/../sparsified")):
        refused(sparsify("patch", "--thresholds", "sparsified", "--k", "3", *target), 2, "use -o for another directory")


def test_from_another_directory(
    sparsify: Sparsify, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = sparsify("patch", "--thresholds", str(calibrated), "--k", "3")
    assert done.code == 0, done.err
    assert files(tmp_path / "elsewhere") == [f"sparsified/{name}" for name in WROTE]
    assert "kept / k was not measured: q.jsonl is neither a file here nor " in done.out
    assert "; name other items with --dataset" in done.out
    done = sparsify("patch", "--thresholds", str(calibrated), "--k", "3", "-d", f"{calibrated.parent}/q.jsonl")
    assert "q.jsonl: mean " in done.out


def test_data_that_has_changed_is_not_measured_on(sparsify: Sparsify, calibrated: Path) -> None:
    tiny_language_models.save_questions(Path("q.jsonl"), 5)
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "--dry-run")
    assert "kept / k was not measured: q.jsonl has other items than in calibration; name other items" in done.out


@pytest.mark.parametrize("name", ["somebody/data", "data", "/dev/zero", "squad=/dev/zero", "."])
def test_what_only_the_recipe_names_is_not_opened(
    name: str, sparsify: Sparsify, calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = content("sparsified")
    made["calibration"]["dataset"] = name
    (calibrated / "sparsify.json").write_text(json.dumps(made))
    for function in ("_load_hub", "read_items"):
        monkeypatch.setattr(f"hf_sparsify.evaluation.sources.{function}", None)
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "--dry-run")
    assert done.code == 0, done.err
    assert f"kept / k was not measured: {name} is neither a file here nor " in done.out


def test_a_dry_run_writes_nothing(sparsify: Sparsify, calibrated: Path, work: Path) -> None:
    before = contents(work)
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "--dry-run")
    assert done.code == 0
    assert "kept / k on " in done.out
    assert "dry run: nothing was written" in done.out
    assert contents(work) == before


def test_dense_activations_are_those_of_any_k(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--activations", "dense").code == 0
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three")
    assert done.code == 0, done.err
    assert warnings_of(done) == []
    assert "kept / k" not in done.out
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three", "-d", "q.jsonl")
    assert "kept / k on 6 items of q.jsonl" in done.out


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


def test_a_model_of_another_shape_or_other_weights_is_refused(sparsify: Sparsify, calibrated: Path, work: Path) -> None:
    command = ("--thresholds", "sparsified", "--k", "3", "-o", "three")
    before = files(work)
    refused(sparsify("patch", "gpt2", *command), 4, "has another shape")
    torch.manual_seed(5)
    tiny_language_models.save("llama", work / "tuned")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work / "tuned")
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(work / "tuned")
    done = sparsify("patch", "tuned", *command)
    refused(done, 4, f"calibrated on {(work / 'llama').resolve()}, and {work / 'tuned'} has other weights")
    refused(sparsify("patch", *command, "--dtype", "float16"), 4, "or another --dtype")
    shutil.rmtree(work / "tuned")
    assert files(work) == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("--attention top-k", 2, "--attention does not go with --thresholds, where all but --k or --keep is"),
        ("--compensation none", 2, "--compensation does not go with --thresholds"),
        ("--v-mean visible", 2, "--v-mean does not go with --thresholds"),
        ("--placement post-softmax", 2, "--placement does not go with --thresholds"),
        ("--min-keep 1", 2, "--min-keep does not go with --thresholds"),
        ("--layers 0", 2, "--layers does not go with --thresholds"),
        ("--skip_layers none", 2, "--skip-layers does not go with --thresholds"),
        ("--ffn none", 2, "--ffn does not go with --thresholds"),
        ("--protect-first 0", 2, "--protect-first does not go with --thresholds"),
        ("--set re:.*=none", 2, "--set does not go with --thresholds"),
        ("--k 2 --keep 0.5", 2, "--k and --keep exclude each other"),
        ("--k 0", 2, "k must be a whole number of at least 1, not 0"),
        ("--keep 2", 2, "keep must be a fraction in (0, 1], not 2.0"),
        ("--split train", 2, "--split goes with --dataset"),
        ("--dataset nowhere.jsonl", 1, "no such file: nowhere.jsonl"),
        ("--dataset q.jsonl --split train", 2, "a file has no splits"),
        ("--k 500", 1, "no row that was calibrated in sparsified is longer than its k: use a smaller --k"),
        ("-o q.jsonl/below", 1, "cannot write the recipe to q.jsonl/below"),
    ],
)
def test_what_is_refused(arguments: str, code: int, sentence: str, sparsify: Sparsify, calibrated: Path) -> None:
    before = contents(calibrated.parent)
    done = sparsify("patch", "--thresholds", "sparsified", "-o", "new", *arguments.split())
    errors = Done(done.code, done.out, "\n".join(line for line in done.err.splitlines() if WARNING not in line))
    refused(errors, code, sentence)
    assert contents(calibrated.parent) == before


def test_a_budget_has_to_go_with_the_rest_of_its_method(sparsify: Sparsify) -> None:
    options = ("--attention", "top-theta", "--min-keep", "3", "--protect-first", "2", "--no-verify")
    assert sparsify("patch", "llama", "--k", "4", *options).code == 0
    assert sparsify("calibrate", "-d", "q.jsonl").code == 0
    command = ("patch", "--thresholds", "sparsified", "-o", "new")
    refused(sparsify(*command, "--k", "2"), 2, "min_keep = 3 is more than k = 2")
    refused(sparsify(*command, "--k", "1"), 2, "2 protected keys do not fit in k = 1")


@pytest.mark.parametrize("damage", ["unlink", "write", "cut"])
def test_without_its_histograms(damage: str, sparsify: Sparsify, calibrated: Path) -> None:
    path = calibrated / "histograms.safetensors"
    if damage == "unlink":
        path.unlink()
    else:
        path.write_bytes(b"{}" if damage == "write" else path.read_bytes()[:-9])
    refused(sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "new"), 1, "`sparsify calibrate`")
    assert not Path("new").exists()


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


def test_counts_of_another_number_of_heads_are_refused(sparsify: Sparsify, calibrated: Path) -> None:
    path = calibrated / "histograms.safetensors"
    histograms, notes = load_histograms(path)
    for histogram in histograms.values():
        for part in histogram.parts().values():
            part.update({bucket: counts[:1] for bucket, counts in part.items()})
    save_histograms(histograms, path, notes)
    made = content("sparsified")
    made["calibration"]["histograms_sha256"] = sha256(path.read_bytes())
    (calibrated / "sparsify.json").write_text(json.dumps(made))
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three", "--no-verify")
    refused(done, 4, "heads")
    assert not Path("three").exists()


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


def test_distractors_are_those_of_calibration(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "3", "--distractors", "1").code == 0
    done = sparsify("patch", "--thresholds", "sparsified", "--k", "3", "-o", "three", "--no-verify")
    assert "kept / k on 3 items of q.jsonl: mean " in done.out
    assert content("three")["calibration"]["distractors"] == 1


def test_what_holds_no_calibration(sparsify: Sparsify, work: Path) -> None:
    refused(sparsify("patch", "--thresholds", "nowhere", "--k", "3", "-o", "new"), 1, "nowhere holds no recipe")
    refused(sparsify("patch", "--thresholds", "llama", "--k", "3", "-o", "new"), 1, "llama holds no recipe")
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    command = ("patch", "--thresholds", "sparsified", "--k", "3", "-o", "new")
    refused(sparsify(*command), 1, "not calibrated: run `sparsify calibrate`")


def test_patching_over_a_calibrated_recipe_leaves_no_histograms(sparsify: Sparsify, calibrated: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--force", "--no-verify").code == 0
    assert files(calibrated) == ["sparsify.json"]
