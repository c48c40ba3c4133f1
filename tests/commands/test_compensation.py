"""What `sparsify patch` does about dropped keys and first layers: its options, its defaults, and what validate says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Sparsify, contents, files, refused
from hf_sparsify.commands.target import DEFAULT_COMPENSATION
from hf_sparsify.patcher import preset
from hf_sparsify.patcher.preset import DEEP, DENSE_LAYERS

GOLDEN = Path(__file__).parents[1] / "golden" / "help-patch.txt"


def written(folder: Path) -> dict[str, Any]:
    """The content of sparsify.json."""
    recipe: dict[str, Any] = json.loads((folder / "sparsify.json").read_text())
    return recipe


def methods(folder: Path) -> list[dict[str, Any]]:
    """The plan's methods, each once."""
    return [dict(pairs) for pairs in {tuple(method.items()) for method in written(folder)["plan"].values()}]


@pytest.mark.parametrize(
    ("arguments", "fields", "shown"),
    [
        ("", {"compensation": DEFAULT_COMPENSATION}, "top-k, k = 4"),
        ("--compensation none", {"compensation": "none"}, "top-k, k = 4 "),
        ("--compensation sdc+vmc", {"compensation": "sdc+vmc", "v_mean": "visible"}, "top-k, k = 4, sdc+vmc"),
        ("--compensation sdc+vmc --v-mean dropped", {"v_mean": "dropped"}, "top-k, k = 4, sdc+vmc"),
        (
            "--attention top-theta --placement pre-softmax --min-keep 2 --compensation sdc+vmc",
            {"method": "top-theta", "placement": "pre-softmax", "min_keep": 2, "compensation": "sdc+vmc"},
            "top-theta, k = 4, sdc+vmc, pre-softmax",
        ),
    ],
)
def test_options_reach_the_recipe(
    arguments: str, fields: dict[str, Any], shown: str, sparsify: Sparsify, work: Path
) -> None:
    command = ("patch", "llama", "--k", "4", *arguments.split())
    done = sparsify(*command)
    assert done.code == 0, done.err
    [method] = methods(work / "sparsified")
    assert {name: method[name] for name in fields} == fields
    assert shown in done.out
    assert "worst choice" not in done.err
    before = contents(work)
    assert sparsify(*command).code == 0, "the same again needs no --force"
    assert contents(work) == before


@pytest.mark.parametrize("arguments", [("--compensation", "sdc"), ("--set", "re:.*=top-k,k=4,compensation=sdc")])
def test_sdc_alone_is_warned_of(arguments: tuple[str, ...], sparsify: Sparsify) -> None:
    done = sparsify("patch", "llama", *arguments, "--dry-run", "-q")
    assert done.code == 0
    assert done.err.startswith("warning: sdc alone is the worst choice measured: the lost mass goes nowhere; use ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("llama --compensation vmc", "vmc alone changes nothing"),
        ("llama --compensation all", "compensation must be one of none, sdc, sdc+vmc, not 'all'"),
        ("llama --compensation sdc+vmc --v-mean all", "v_mean must be visible or dropped, not 'all'"),
        ("llama --v-mean dropped --compensation none", "--v-mean goes with --compensation sdc+vmc"),
        ("llama --placement pre-softmax", "--placement does not go with --attention top-k"),
        ("llama --min-keep 2", "--min-keep does not go with --attention top-k"),
        ("llama --attention top-theta --placement soft", "placement must be one of post-softmax, max-relative"),
        ("llama --attention top-theta --k 2 --min-keep 3", "min_keep = 3 is more than k = 2"),
        ("llama --attention top-theta --min-keep 0", "min_keep must be a whole number of at least 1, not 0"),
        ("bert --attention clustered --compensation sdc", "--compensation does not go with --attention clustered"),
        ("llama --attention none --ffn top-k --v-mean visible", "--v-mean does not go with --attention none"),
        ("llama --dataset demo", "--dataset and --split go with --thresholds here"),
        ("llama --split train", "--dataset and --split go with --thresholds here"),
        ("", "name the MODEL to patch"),
    ],
)
def test_what_does_not_go_together(arguments: str, sentence: str, sparsify: Sparsify, work: Path) -> None:
    refused(sparsify("patch", *arguments.split()), 2, sentence)
    assert files(work) == []


def test_help_tells_the_defaults() -> None:
    text = " ".join(GOLDEN.read_text(encoding="utf-8").replace("│", " ").split())
    assert f"mean of the values (default: {DEFAULT_COMPENSATION})" in text
    assert ("leave layers 0-1 dense" in text) == bool(DENSE_LAYERS)


NOTE = "attention of layers 0-1 stays dense by default in models with more than 8 layers; --skip-layers none patches it"


@pytest.fixture
def deep(work: Path) -> Path:
    """A tiny Llama with one layer more than the default is for."""
    return tiny_language_models.save("llama", work / "deep", num_hidden_layers=DEEP + 1)


@pytest.mark.parametrize(
    ("arguments", "layers", "said"),
    [
        ("", range(2, 9), True),
        ("--attention top-theta", range(2, 9), True),
        ("--skip-layers none", range(9), False),
        ("--skip_layers=none --layers 0-3", range(4), False),
        ("--skip-layers 1", [0, *range(2, 9)], False),
        ("--layers 0-8", range(9), False),
        ("--set model.layers.0.self_attn=top-k,k=2", [0, *range(2, 9)], True),
    ],
)
def test_first_layers_of_deep_models_stay_dense_by_default(
    arguments: str, layers: range, said: bool, sparsify: Sparsify, deep: Path
) -> None:
    done = sparsify("patch", "deep", "--k", "4", "--no-verify", *arguments.split())
    assert done.code == 0, done.err
    assert list(written(Path("sparsified"))["plan"]) == [f"model.layers.{layer}.self_attn" for layer in layers]
    assert ("stays dense by default" in done.out) == said
    assert (NOTE in done.out) == (said and "--set" not in arguments)


def test_feed_forward_layers_and_clusters_have_no_such_default(sparsify: Sparsify, deep: Path) -> None:
    done = sparsify("patch", "deep", "--k", "4", "--ffn", "top-k", "--no-verify")
    assert NOTE in done.out
    plan = written(Path("sparsified"))["plan"]
    assert sum(method["method"] == "top-k-feed-forward" for method in plan.values()) == 9
    assert "model.layers.0.self_attn" not in plan
    done = sparsify("patch", "deep", "--attention", "none", "--ffn", "top-k", "--dry-run")
    assert "stays dense by default" not in done.out
    done = sparsify("patch", "deep", "--attention", "clustered", "--dry-run")
    assert "stays dense by default" not in done.out


def test_only_stacks_that_are_deep_have_that_default(sparsify: Sparsify, work: Path) -> None:
    tiny_language_models.save("t5", work / "lopsided", num_layers=9, num_decoder_layers=2)
    done = sparsify("patch", "lopsided", "--k", "4", "--no-verify")
    assert done.code == 0, done.err
    assert NOTE in done.out
    names = list(written(work / "sparsified")["plan"])
    assert not any(name.startswith(("encoder.block.0.", "encoder.block.1.")) for name in names)
    assert sum(name.startswith("encoder.") for name in names) == 7
    assert sum(name.startswith("decoder.") for name in names) == 4
    done = sparsify("patch", "lopsided", "--k", "4", "--stack", "decoder", "--dry-run")
    assert "stays dense by default" not in done.out


def test_one_constant_turns_it_off(sparsify: Sparsify, deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preset, "DENSE_LAYERS", ())
    done = sparsify("patch", "deep", "--k", "4", "--no-verify")
    assert len(written(Path("sparsified"))["plan"]) == 9
    assert "stays dense by default" not in done.out


SHALLOW = "no recipe named: starting from top-k attention with k = 64 on every layer\n"


def test_a_model_without_a_recipe_has_the_plan_of_patch(sparsify: Sparsify, deep: Path) -> None:
    assert sparsify("patch", "deep", "--no-verify").code == 0
    plan = written(Path("sparsified"))["plan"]
    few = ("-d", "q.jsonl", "--limit", "2", "--max-new-tokens", "2", "--max-drop", "100", "--json")
    done = sparsify("eval", "deep", *few)
    assert done.code == 0, done.err
    assert json.loads(done.out)["plan"] == plan
    assert f"{SHALLOW.rstrip()} but 0-1\n" in done.err
    done = sparsify("calibrate", "deep", "-d", "q.jsonl", "--k", "4", "-o", "calibrated")
    assert done.code == 0, done.err
    assert list(written(Path("calibrated"))["plan"]) == list(plan)
    assert SHALLOW in sparsify("eval", "llama", *few).err


Edit = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            lambda plan: plan.update(k=5),
            "were fitted at k = 4, compensation = sdc+vmc, v_mean = dropped and the plan says k = 5, compensation",
        ),
        (
            lambda plan: plan.update(compensation="none", v_mean="visible", protect_first=1),
            "compensation = sdc+vmc, v_mean = dropped and the plan says k = 4, protect_first = 1:",
        ),
        (
            lambda plan: plan.update(placement="pre-softmax"),
            "are for max-relative placement, the plan asks for pre-softmax",
        ),
        (lambda plan: plan.update(denominator="offline"), "hold no offline denominator, which the plan asks for"),
    ],
)
def test_validate_tells_an_edited_plan(edit: Edit, sentence: str, sparsify: Sparsify, work: Path) -> None:
    options = ("--attention", "top-theta", "--placement", "max-relative", "--compensation", "sdc+vmc")
    assert sparsify("patch", "llama", "--k", "4", *options, "--v-mean", "dropped", "--no-verify").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4").code == 0
    assert sparsify("validate").code == 0
    recipe = written(work / "sparsified")
    edit(recipe["plan"]["model.layers.0.self_attn"])
    (work / "sparsified" / "sparsify.json").write_text(json.dumps(recipe))
    done = sparsify("validate")
    refused(done, 4, "has a problem: ")
    assert sentence in done.err
    assert "`sparsify calibrate`" in done.err
