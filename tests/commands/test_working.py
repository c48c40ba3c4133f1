"""The three commands as typed, one after the other, on tiny models: what they write and print."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Done, Sparsify, contents, files, refused

CALIBRATED = ("histograms.safetensors", "sparsify.json", "thresholds.safetensors")


@pytest.mark.parametrize("model", ["llama", "chat", "t5", "gpt2", "bart"])
def test_patch_calibrate_eval_and_generate_as_typed(model: str, sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", f"./{model}", "--k", "4")
    assert done.code == 0, done.err
    assert "top-k, k = 4" in done.out
    assert "cached decoding equals the full forward pass" in done.out
    assert "wrote sparsified; next: sparsify calibrate" in done.out
    assert files(work) == ["sparsified/sparsify.json"]

    done = sparsify("calibrate", "--dataset", "q.jsonl", "--samples", "4")
    assert done.code == 0, done.err
    assert "Calibrated on 4 items of q.jsonl, k = 4" in done.out
    assert "wrote sparsified; next: sparsify eval" in done.out
    assert "4 of 4" in done.err
    assert files(work) == [f"sparsified/{name}" for name in CALIBRATED]
    recipe = json.loads((work / "sparsified/sparsify.json").read_text())
    assert {method["method"] for method in recipe["plan"].values()} == {"top-theta"}
    assert {method["method"] for method in recipe["before_calibration"].values()} == {"top-k"}
    assert recipe["calibration"]["samples"] == 4

    command = ("eval", "-d", "q.jsonl", "--max_new_tokens=3", "--batch_size", "4", "--by-module", "--max-drop", "100")
    done = sparsify(*command)
    assert done.code == 0, done.err
    assert "6 items of q.jsonl" in done.out
    assert "PASS: the drop is at most" in done.out
    assert "Kept per module" in done.out
    [run] = (work / "sparsified/eval").iterdir()
    assert f"wrote sparsified/eval/{run.name}" in done.err
    assert re.fullmatch(r"q-[0-9a-f]{8}", run.name)
    assert sorted(os.listdir(run)) == ["predictions.jsonl", "results.json"]

    before = contents(run)
    done = sparsify(*command)
    assert done.code == 0, done.err
    assert f"was there already, judged anew: sparsified/eval/{run.name}" in done.err
    assert contents(run) == before

    options = ("--max-new-tokens", "3", "--as-top-k", "-o", "as-top-k", "--quiet", "--max-drop", "100")
    done = sparsify("eval", "-d", "q.jsonl", *options)
    assert (done.code, done.err) == (0, "")
    results = json.loads(Path("as-top-k/results.json").read_text())
    assert results["kept"]["total"]["kept_per_k"] == 1
    assert results["calibration"] is None
    assert {method["method"] for method in results["plan"].values()} == {"top-k"}

    done = sparsify("generate", "sparsified", "Where is Ann ?", "--max-new-tokens", "3", "--json")
    assert done.code == 0, done.err
    answers = json.loads(done.out)
    assert set(answers) == {"dense", "patched", "kl", "kept", "interception"}
    assert answers["kl"] >= 0


@pytest.mark.parametrize("model", ["bert-qa", "roberta-qa", "bart-qa", "bert"])
def test_patch_calibrate_and_eval_of_models_that_do_not_generate(model: str, sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", f"./{model}", "--k", "3")
    assert done.code == 0, done.err
    assert "wrote sparsified; next: sparsify calibrate" in done.out

    done = sparsify("calibrate", "--dataset", "q.jsonl", "--samples", "4")
    assert done.code == 0, done.err
    assert "Calibrated on 4 items of q.jsonl, k = 3" in done.out
    assert files(work) == [f"sparsified/{name}" for name in CALIBRATED]

    done = sparsify(
        *("eval", "-d", "q.jsonl", "--batch-size", "4", "--limit", "5", "--json", "-o", "run", "--max-drop", "100")
    )
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert json.loads(Path("run/results.json").read_text()) == results
    retrieval = model == "bert"
    assert results["task"] == ("retrieval" if retrieval else "extractive")
    metrics = {"accuracy": "top-1", "reciprocal_rank": "MRR"} if retrieval else {"exact_match": "EM", "f1": "F1"}
    assert results["metrics"] == metrics
    assert all(set(arm) == set(metrics) for arm in results["scores"].values())
    assert {method["method"] for method in results["plan"].values()} == {"top-theta"}
    assert set(results["distance"]) == ({"question_cosine", "passage_cosine"} if retrieval else {"kl"})
    assert results["primary"] == ("accuracy" if retrieval else "f1")
    assert results["max_new_tokens"] is None
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == results["dataset"]["items"] == 5
    layout = {"id", "input_sha256", "tokens", "kind", "question", "gold", "dense", "patched", "same_answer", "distance"}
    for line in lines:
        assert set(line) == layout
        assert set(line["dense"]) == {"answer", *metrics, "rank" if retrieval else "margin"}
        assert set(line["distance"]) == set(results["distance"])

    done = sparsify("eval", "-d", "q.jsonl", "--as-top-k", "-q", "--max-drop", "100")
    assert (done.code, done.err) == (0, "")
    assert f"{metrics[results['primary']]} by kind" in done.out


def test_what_an_evaluation_saves(sparsify: Sparsify, work: Path) -> None:
    sparsify("patch", "llama", "--k", "4")
    options = ("--max-new-tokens", "4", "--limit", "5", "--seed", "3", "--json", "-o", "run", "--max-drop", "100")
    done = sparsify("eval", "-d", "q.jsonl", *options)
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert json.loads(Path("run/results.json").read_text()) == results
    assert "NaN" not in done.out
    assert results["base_model"]["id"] == str((work / "llama").resolve())
    assert results["dataset"]["items"] == results["limit"] == 5
    assert (results["seed"], results["max_new_tokens"], results["batch_size"]) == (3, 4, 8)
    assert set(results["scores"]) == {"dense", "patched", "difference"}
    assert set(results["by_kind"]) == {"even", "odd"}
    assert sum(kind["items"] for kind in results["by_kind"].values()) == 5
    assert results["prompt"]["style"] == "completion"
    assert set(results["kept"]["modules"]) == set(results["plan"])
    assert 0 < results["kept"]["total"]["kept_share"] < 1
    assert results["distance"]["kl"]["value"] > 0
    assert results["distance"]["kl"]["unit"] == "nats per answer token"
    assert results["versions"]["hf-sparsify"]
    assert results["command"] == f"sparsify eval -d q.jsonl {' '.join(options)}"
    assert results["recipe"] == "sparsified"
    assert results["verdict"]["decision"] == "PASS"
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    asked = {record["id"]: record for record in tiny_language_models.records(6)}
    order = [line["id"] for line in lines]
    assert order == [id_ for id_ in asked if id_ in order]
    for line in lines:
        assert line["gold"] == asked[line["id"]]["answers"]
        assert line["same_answer"] == (line["dense"]["answer"] == line["patched"]["answer"])
        for arm in ("dense", "patched"):
            assert 1 <= len(line[arm]["answer_tokens"]) <= 4
        assert line["distance"]["tokens"] == len(line["dense"]["answer_tokens"])
    assert results["same_answer_share"] == sum(line["same_answer"] for line in lines) / 5
    flipped = {before: [line["id"] for line in lines if _flipped(line) == before] for before in ("right", "wrong")}
    assert results["flips"]["right_to_wrong"] == flipped["right"]
    assert results["flips"]["wrong_to_right"] == flipped["wrong"]


def _flipped(line: dict[str, Any]) -> str | None:
    """What an answer was before, if it is something else now."""
    dense, patched = line["dense"]["exact_match"], line["patched"]["exact_match"]
    return None if dense == patched else "right" if dense else "wrong"


def test_a_model_takes_the_place_of_a_recipe(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("eval", "llama", "-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100")
    assert done.code == 0
    assert "no recipe named" in done.err
    assert [re.sub("[0-9a-f]{8}", "#", path) for path in files(work)] == [
        "sparsified-eval/q-#/predictions.jsonl",
        "sparsified-eval/q-#/results.json",
    ]
    assert sparsify("calibrate", "llama", "-d", "q.jsonl", "--k", "4", "-o", "mine").code == 0
    assert json.loads(Path("mine/sparsify.json").read_text())["calibration"]["budget"] == "k = 4"


def test_patching_twice_is_fine_and_another_recipe_needs_force(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4").code == 0
    before = Path("sparsified/sparsify.json").read_text()
    assert sparsify("patch", "llama", "--k", "4").code == 0
    refused(sparsify("patch", "llama", "--k", "5"), 2, "already holds another recipe: use --force")
    assert Path("sparsified/sparsify.json").read_text() == before
    assert sparsify("patch", "llama", "--k", "5", "--force").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl").code == 0
    refused(sparsify("patch", "llama", "--k", "5"), 2, "already holds another recipe")
    assert sparsify("calibrate", "-d", "q.jsonl", "--k", "3").code == 0, "in place, no --force needed"
    assert sparsify("patch", "llama", "--k", "4", "-o", "two").code == 0
    refused(sparsify("calibrate", "two", "-d", "q.jsonl", "-o", "sparsified"), 2, "already holds another recipe")
    assert sparsify("patch", "llama", "--k", "5", "--force").code == 0
    assert files(work) == ["sparsified/sparsify.json", "two/sparsify.json"]


def test_a_recipe_elsewhere_names_itself_in_what_to_type_next(sparsify: Sparsify) -> None:
    done = sparsify("patch", "llama", "--k", "4", "-o", "a recipe")
    assert "wrote a recipe; next: sparsify calibrate 'a recipe'" in done.out
    done = sparsify("calibrate", "a recipe", "-d", "q.jsonl")
    assert "wrote a recipe; next: sparsify eval 'a recipe'" in done.out
    done = sparsify("eval", "a recipe", "-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100")
    assert done.code == 0
    assert len(list(Path("a recipe/eval").iterdir())) == 1


def test_dry_run_writes_nothing_and_proves_nothing(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", "llama", "--dry-run", "--skip_layers=0")
    assert (done.code, files(work)) == (0, [])
    assert "dry run: nothing was written" in done.out
    assert "Proof" not in done.out


def test_no_verify_proves_nothing(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", "llama", "--no-verify")
    assert (done.code, files(work)) == (0, ["sparsified/sparsify.json"])
    assert "Proof" not in done.out


def test_quiet_says_nothing_on_stderr(sparsify: Sparsify) -> None:
    assert sparsify("patch", "llama", "--k", "4", "-q") == Done(0, "", "")
    assert sparsify("calibrate", "-d", "q.jsonl", "-q") == Done(0, "", "")
    tiny_language_models.save_questions(Path("new.jsonl"), people=4)
    done = sparsify("eval", "-d", "new.jsonl", "--max-new-tokens", "1", "-q", "--json", "--max-drop", "100")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["schema_version"] == 3
    done = sparsify("eval", "-d", "q.jsonl", "--max-new-tokens", "1", "-q", "--json", "--max-drop", "100")
    assert done.code == 0
    assert done.err.startswith("warning: 6 of these 6 items were used for calibration"), "warnings are no progress"
    assert done.err.count("\n") == 1


def test_names_with_brackets_and_colons_are_printed_as_they_are(sparsify: Sparsify) -> None:
    record = {**tiny_language_models.records(1)[0], "kind": "[bold]a :smile: kind"}
    Path("[red]q.jsonl").write_text(json.dumps(record))
    done = sparsify("eval", "llama", "-d", "[red]q.jsonl", "--max-new-tokens", "1", "-o", "[blue]out")
    assert "1 item of [red]q.jsonl" in done.out
    assert "[bold]a :smile: kind" in done.out
    assert "wrote [blue]out" in done.err


def test_underscores_are_accepted_in_option_names_only(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--no_verify", "--output_dir", "my_recipe", "--skip_layers=0").code == 0
    assert files(work) == ["my_recipe/sparsify.json"]
    options = ("--max_new_tokens=1", "--output-dir=a_b", "--max_drop=100")
    assert sparsify("eval", "my_recipe", "-d", "q.jsonl", *options).code == 0
    assert Path("a_b/results.json").exists()


def test_methods_and_env_and_version(sparsify: Sparsify) -> None:
    done = sparsify("methods")
    assert done.code == 0
    assert all(text in done.out for text in ("top-k", "top-theta", "arXiv 2106.06899", "arXiv 2502.08363"))
    assert "transformers: " in sparsify("env").out
    assert sparsify("--version").out.startswith("hf-sparsify ")


def test_bfloat16_on_a_cpu_gets_a_hint(sparsify: Sparsify) -> None:
    done = sparsify("patch", "llama", "--dtype", "bfloat16", "--device", "cpu", "--no-verify")
    assert "hint: on a CPU, --dtype float32" in done.err
    assert "hint" not in sparsify("patch", "llama", "--device", "cpu", "--no-verify").err


def test_a_moved_model_is_found_or_named(sparsify: Sparsify, work: Path) -> None:
    Path("place").mkdir()
    shutil.copytree("llama", "place/mine", symlinks=False)
    assert sparsify("patch", "place/mine", "--k", "4").code == 0
    Path("place/mine").rename("mine")
    command = ("eval", "-d", "q.jsonl", "--max-new-tokens", "1", "--limit", "1", "--max-drop", "100")
    assert sparsify(*command).code == 0
    Path("mine").rename("renamed")
    refused(sparsify(*command), 1, "is not there any more: say where it is with --model")
    assert sparsify(*command, "--model", "renamed").code == 0
    refused(sparsify(*command, "--model", "gpt2"), 4, "has another shape")
    refused(sparsify(*command, "--model", "other"), 4, "has another shape")


def test_results_and_recipes_name_the_model_that_really_ran(sparsify: Sparsify, work: Path) -> None:
    shutil.copytree(work / "llama", work / "tuned")
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    options = ("--limit", "2", "--max-new-tokens", "2", "--json", "--max-drop", "100")
    done = sparsify("eval", "--model", "tuned", "-d", "q.jsonl", *options)
    assert done.code == 0
    assert json.loads(done.out)["base_model"]["id"] == str((work / "tuned").resolve())
    assert sparsify("calibrate", "--model", "tuned", "-d", "q.jsonl", "--samples", "2", "-o", "new").code == 0
    assert json.loads((work / "new" / "sparsify.json").read_text())["base_model"]["id"].endswith("tuned")
