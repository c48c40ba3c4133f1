"""One recipe with several methods, from patch to eval, and `sparsify validate` on recipes edited by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Sparsify, contents, files, refused

MIXED = [
    *("patch", "t5", "--k", "4", "--ffn", "top-k", "--ffn-k", "8"),
    *("--set", r"re:encoder\..*=clustered,clusters=5,k=3"),
    *("--set", "decoder.block.0.layer.0.SelfAttention=none"),
]
THREE = ("--max-new-tokens", "3", "--max-drop", "100")


def recipe() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("sparsified/sparsify.json").read_text())
    return content


def edit(**plan: dict[str, Any] | None) -> None:
    """Changes entries of the plan as a person would with an editor; "__" stands for "." in names."""
    content = recipe()
    for name, entry in plan.items():
        name = name.replace("__", ".")
        if entry is None:
            del content["plan"][name]
        else:
            content["plan"][name] = entry
    Path("sparsified/sparsify.json").write_text(json.dumps(content))


def methods(plan: dict[str, Any]) -> dict[str, int]:
    names = [entry["method"] for entry in plan.values()]
    return {name: names.count(name) for name in sorted(set(names))}


def test_patch_calibrate_eval_with_three_methods(sparsify: Sparsify, work: Path) -> None:
    done = sparsify(*MIXED)
    assert done.code == 0, done.err
    assert "clustered, 5 clusters, k = 3" in done.out
    assert "top-k-feed-forward, k = 8" in done.out
    assert methods(recipe()["plan"]) == {"clustered": 2, "top-k": 3, "top-k-feed-forward": 4}

    done = sparsify("calibrate", "-d", "q.jsonl", "--samples", "4")
    assert done.code == 0, done.err
    calibrated = recipe()
    assert methods(calibrated["plan"]) == {"clustered": 2, "top-k-feed-forward": 4, "top-theta": 3}
    assert methods(calibrated["before_calibration"]) == {"clustered": 2, "top-k": 3, "top-k-feed-forward": 4}
    assert calibrated["calibration"]["budget"] == "k = 4"

    done = sparsify("eval", "-d", "q.jsonl", *THREE, "--by-module", "-o", "run")
    assert done.code == 0, done.err
    assert "scores computed" in done.out
    assert "feed-forward activations kept" in done.out
    kept = json.loads(Path("run/results.json").read_text())["kept"]
    assert kept["total"]["activations_kept_share"] == pytest.approx(8 / 40)
    assert set(kept["modules"]) == set(calibrated["plan"])
    clustered = kept["modules"]["encoder.block.0.layer.0.SelfAttention"]
    assert clustered["cluster_scores_share"] > 0
    assert clustered["kept_share"] is None

    done = sparsify("eval", "-d", "q.jsonl", *THREE, "--as-top-k", "-o", "exact")
    assert done.code == 0, done.err
    assert methods(json.loads(Path("exact/results.json").read_text())["plan"]) == {
        "clustered": 2,
        "top-k": 3,
        "top-k-feed-forward": 4,
    }
    done = sparsify("generate", "sparsified", "Where is Ann ?", "--max-new-tokens", "3")
    assert "of feed-forward activations kept" in done.out


def test_another_k_reaches_only_what_has_one_to_change(sparsify: Sparsify) -> None:
    assert sparsify(*MIXED, "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4", "--k", "6").code == 0
    plan = recipe()["plan"]
    assert {entry["k"] for entry in plan.values() if entry["method"] == "top-theta"} == {6}
    assert {entry["k"] for entry in plan.values() if entry["method"] == "clustered"} == {3}
    assert {entry["k"] for entry in plan.values() if entry["method"] == "top-k-feed-forward"} == {8}


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ("t5 --attention none --ffn top-k", "top-k-feed-forward"),
        ("t5 --attention clustered --stack encoder", "clustered"),
        ("bert-qa --attention clustered-plain --clusters 3 --ffn top-k --ffn-k 4", "clustered-plain and top-k-feed"),
    ],
)
def test_nothing_to_calibrate(options: str, held: str, sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", *options.split())
    assert done.code == 0, done.err
    assert "next: sparsify eval" in done.out
    before = contents(work)
    refused(
        sparsify("calibrate", "-d", "q.jsonl"),
        2,
        f"nothing to calibrate: thresholds are for top-k attention, and the plan holds {held}",
    )
    assert contents(work) == before


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("llama --attention clustered", 4, "model.layers.0.self_attn is causal self-attention"),
        ("t5 --attention clustered", 4, "decoder.block.0.layer.0.SelfAttention is causal self-attention"),
        ("t5 --attention clustered-plain --kind cross", 4, "EncDecAttention is cross-attention"),
        ("bert --attention clustered --keep 0.5", 2, "--keep does not go with --attention clustered"),
        ("bert --attention clustered-plain --k 3", 2, "--k does not go with --attention clustered-plain"),
        ("bert --clusters 3", 2, "--clusters does not go with --attention top-k"),
        ("bert --attention none --ffn top-k --min-length 3", 2, "--min-length does not go with --attention none"),
        ("bert --min-length -1", 2, "min_length must be a whole number of at least 0"),
        ("bert --attention clustered --protect-first 1", 2, "--protect-first does not go with"),
        ("bert --attention clustered --clusters 0", 2, "clusters must be a whole number of at least 1"),
        ("bert --attention clustered --min-length -1", 2, "min_length must be a whole number of at least 0"),
        ("bert --ffn-k 3", 2, "--ffn-k and --ffn-keep go with --ffn top-k"),
        ("bert --ffn top-k --ffn-k 3 --ffn-keep 0.5", 2, "--ffn-k and --ffn-keep exclude each other"),
        ("bert --ffn top-k --ffn-k 0", 2, "k must be a whole number of at least 1"),
        ("bert --ffn magic", 2, "unknown feed-forward method 'magic'"),
        ("bert --attention none", 2, "--attention none leaves nothing to patch"),
        ("bert --attention top-k-feed-forward", 2, "unknown method 'top-k-feed-forward'"),
        ("bert --set nowhere=top-k,k=3", 2, "no module that can be patched matches 'nowhere'"),
        ("bert --set x", 2, "is not PATTERN=METHOD"),
        ("bert --set re:.*=top-k,k=3,k=4", 2, "gives an option twice"),
        ("bert --set re:decoder.*=top-k,k=3", 2, "there is, for example, encoder.layer."),
        ("bert --attention none --ffn top-k --k 3", 2, "--k does not go with --attention none"),
        ("bert --attention none --ffn top-k --k 3 --keep 0.5", 2, "--k and --keep exclude each other"),
        ("bert --attention none --ffn top-k --protect-first 3", 2, "--protect-first does not go with"),
        ("bert --attention none --ffn top-k --kind self", 2, "kind goes with an attention method"),
        ("bert --attention none --layers 77 --set re:.*self=top-k,k=3", 2, "layers goes with an attention or feed"),
    ],
)
def test_patch_refuses(arguments: str, code: int, sentence: str, sparsify: Sparsify, work: Path) -> None:
    refused(sparsify("patch", *arguments.split()), code, sentence)
    assert files(work) == []


def test_a_valid_recipe_is_called_valid_and_nothing_is_written(sparsify: Sparsify, work: Path) -> None:
    assert sparsify(*MIXED, "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4").code == 0
    before = contents(work)
    done = sparsify("validate")
    assert done.code == 0, done.err
    assert "keeping all equals the dense model" in done.out
    assert "the recipe in sparsified is valid; calibrated on 4 items of q.jsonl, k = 4" in done.out
    done = sparsify("validate", "./sparsified", "--no-verify", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert contents(work) == before


ENCODER = "encoder__block__1__layer__0__SelfAttention"


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        ({ENCODER: {"method": "clustered", "clusters": 0}}, 1, "clusters must be a whole number of at least 1"),
        ({ENCODER: {"method": "clustred"}}, 1, "unknown method 'clustred'"),
        ({ENCODER: {"method": "top-k", "k": 3, "keys": 1}}, 1, "has no option 'keys'"),
        (
            {"encoder__block__1__SelfAttention": {"method": "top-k", "k": 3}},
            4,
            "is encoder.block.1.layer.0.SelfAttention meant?",
        ),
        ({ENCODER: {"method": "top-k-feed-forward", "k": 3}}, 4, "is attention, which top-k-feed-forward is not for"),
        (
            {"encoder__block__0__layer__1__DenseReluDense__wo": {"method": "top-k", "k": 3}},
            4,
            "is a feed-forward layer",
        ),
        ({"decoder__block__0__layer__0__SelfAttention": {"method": "clustered"}}, 4, "is causal self-attention"),
    ],
)
def test_an_edit_that_does_not_fit(changes: dict, code: int, sentence: str, sparsify: Sparsify, work: Path) -> None:
    assert sparsify(*MIXED, "--no-verify").code == 0
    edit(**changes)
    before = contents(work)
    refused(sparsify("validate"), code, sentence)
    assert contents(work) == before


def test_every_problem_is_listed(sparsify: Sparsify) -> None:
    assert sparsify(*MIXED, "--no-verify").code == 0
    edit(no__such={"method": "top-k", "k": 3}, decoder__block__0__layer__0__SelfAttention={"method": "clustered"})
    done = sparsify("validate")
    assert done.code == 4
    assert "has 2 problems" in done.err
    assert "no.such" in done.err
    assert "causal" in done.err


def test_thresholds_of_another_k_are_a_problem(sparsify: Sparsify) -> None:
    assert sparsify("patch", "t5", "--k", "4", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4").code == 0
    edit(**{ENCODER: {"method": "top-theta", "k": 9, "compensation": "sdc+vmc"}})
    both = "were fitted at k = 4, compensation = sdc+vmc and the plan says k = 9, compensation = sdc+vmc"
    refused(sparsify("validate"), 4, f"{both}: run `sparsify calibrate` again")
    edit(**{ENCODER: {"method": "clustered"}})
    refused(sparsify("validate"), 4, "has thresholds and is clustered")
    edit(**{ENCODER: None})
    assert sparsify("validate", "--no-verify").code == 0


def test_nothing_to_validate(sparsify: Sparsify, work: Path) -> None:
    refused(sparsify("validate"), 2, "there is no recipe in ./sparsified")
    refused(sparsify("validate", "bert"), 1, "bert holds no recipe")


def test_calibration_that_does_not_fit_its_thresholds(sparsify: Sparsify) -> None:
    layer = "encoder.block.0.layer.0.SelfAttention"
    assert sparsify("patch", "t5", "--k", "6", "--set", f"{layer}=top-k,k=4,compensation=none", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4").code == 0
    good = Path("sparsified/sparsify.json").read_text()

    edit(**{layer.replace(".", "__"): {"method": "top-theta", "k": 6}})  # what other modules were fitted at
    refused(sparsify("validate"), 4, f"the thresholds of {layer} were fitted at k = 4 and the plan says k = 6")
    edit(**{layer.replace(".", "__"): {"method": "top-theta", "k": 4, "protect_first": 2}})
    refused(sparsify("validate"), 4, "the plan says k = 4, protect_first = 2")

    Path("sparsified/sparsify.json").write_text(json.dumps({**json.loads(good), "thresholds_sha256": None}))
    refused(sparsify("validate"), 4, "it was calibrated and its thresholds are gone")
    Path("sparsified/sparsify.json").write_text(json.dumps({**json.loads(good), "calibration": None}))
    refused(sparsify("validate"), 4, "does not say what they were fitted on")

    Path("sparsified/sparsify.json").write_text(good)
    Path("sparsified/thresholds.safetensors").unlink()
    refused(sparsify("validate"), 1, "make the recipe anew with `sparsify patch --force` and `sparsify calibrate`")
    assert sparsify("patch", "t5", "--k", "6", "--force", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4").code == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "the recipe is [] instead of an object"),
        ('{"schema_version": 1, "versions": []}', "versions is [] instead of an object"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe(content: str, sentence: str, sparsify: Sparsify, work: Path) -> None:
    (work / "sparsified").mkdir()
    (work / "sparsified/sparsify.json").write_text(content)
    refused(sparsify("validate"), 1, sentence)
    refused(sparsify("patch", "t5"), 2, "already holds another recipe: use --force")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"plan": []}, "the plan is [] instead of an object"),
        ({"plan": {"x": 3}}, "the plan's x is 3 instead of an object"),
        ({"base_model": {"id": "t5"}}, "'task' is missing"),
        ({"base_model": "t5"}, "BaseModel is 't5' instead of an object"),
    ],
)
def test_parts_that_are_malformed(changes: dict[str, Any], sentence: str, sparsify: Sparsify) -> None:
    assert sparsify(*MIXED, "--no-verify").code == 0
    Path("sparsified/sparsify.json").write_text(json.dumps(recipe() | changes))
    refused(sparsify("validate"), 1, sentence)


def test_a_fraction_that_is_none(sparsify: Sparsify) -> None:
    assert sparsify("patch", "t5", "--no-verify").code == 0
    edit(**{ENCODER: {"method": "top-k", "keep": True}})
    refused(sparsify("validate"), 1, "keep must be a fraction in (0, 1], not True")
