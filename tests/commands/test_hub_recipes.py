"""Recipes of the Hub that were downloaded before: told from models, loaded, and left as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hf_sparsify
import pytest
from command_line import Sparsify, contents, refused
from hf_sparsify.commands.recipe_source import find_recipe
from hf_sparsify.errors import SparsifyError, UsageError
from hf_sparsify.patcher.binding.patching import current_patch
from hf_sparsify.patcher.recipe import load_recipe
from huggingface_hub import constants

EVAL = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "-q")
COMMIT = "0" * 40


def publish(folder: Path, name: str) -> Path:
    """Puts a folder into the Hub's cache, where offline mode finds it as if it had been downloaded."""
    repo = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    shutil.rmtree(repo, ignore_errors=True)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if path.is_file():
            shutil.copy(path, repo / "blobs" / str(number))
            link = repo / "snapshots" / COMMIT / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(repo / "blobs" / str(number))
    return repo / "snapshots" / COMMIT


@pytest.fixture
def complete(sparsify: Sparsify, work: Path) -> Path:
    """A recipe with its model on the Hub as me/complete, calibrated."""
    assert sparsify("patch", "llama", "--k", "4", "--no-verify", "--save-model", "-q").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "-q").code == 0
    return publish(work / "sparsified", "me/complete")


@pytest.mark.parametrize("name", ["me/complete", "me/complete@main", f"me/complete@{COMMIT}"])
def test_a_recipe_on_the_hub_is_loaded(name: str, complete: Path, work: Path) -> None:
    (work / "llama").unlink()
    shutil.rmtree(work / "sparsified")
    loaded = hf_sparsify.load(name)
    assert {part.method.name for part in current_patch(loaded.model).module_patches} == {"top-theta"}
    assert loaded.base.id == "me/complete"


def test_commands_take_it_and_write_elsewhere(complete: Path, sparsify: Sparsify, work: Path) -> None:
    shutil.rmtree(work / "sparsified")
    before = contents(complete)
    assert sparsify("validate", "me/complete", "-q").code == 0
    assert sparsify("eval", "me/complete", *EVAL).code == 0
    assert [path.name.split("-")[0] for path in (work / "sparsified-eval").iterdir()] == ["q"]
    assert sparsify("patch", "--thresholds", "me/complete", "--k", "3", "-o", "k3", "-q").code == 0
    assert sparsify("calibrate", "me/complete", "-d", "q.jsonl", "-q").code == 0
    assert load_recipe("sparsified").thresholds
    assert contents(complete) == before
    [results] = (work / "sparsified-eval").glob("*/results.json")
    assert json.loads(results.read_text())["recipe"] == "me/complete"


def test_a_recipe_without_its_model_takes_that_of_the_hub(sparsify: Sparsify, work: Path) -> None:
    publish(work / "llama", "me/llama")
    assert sparsify("patch", "me/llama", "--k", "4", "--no-verify", "-q").code == 0
    assert load_recipe("sparsified").base_model.id == "me/llama"
    publish(work / "sparsified", "me/recipe")
    assert hf_sparsify.load("me/recipe").base.id == "me/llama"
    (work / "me" / "llama").mkdir(parents=True)
    with pytest.raises(SparsifyError, match=r"me/llama on the Hub, and here is a folder of that name.*--model"):
        hf_sparsify.load("sparsified")


def test_a_folder_of_its_author_is_not_looked_for_here(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify", "-q").code == 0
    publish(work / "sparsified", "me/local")
    with pytest.raises(SparsifyError, match=r"me/local is for /.*llama, a folder of its author: say where"):
        hf_sparsify.load("me/local")
    assert hf_sparsify.load("me/local", model="llama").base.model_type == "llama"


def test_what_is_no_recipe_says_what_it_said(complete: Path, sparsify: Sparsify, work: Path) -> None:
    for name in ("me/nowhere", "gpt2", "llama", "demo-t5", "../up", "https://x/y", "me/a b"):
        assert find_recipe(name) is None
    refused(sparsify("eval", "me/nowhere", *EVAL), 1, "unknown model 'me/nowhere'")
    with pytest.raises(UsageError, match=r"me/nowhere was not downloaded before, .* `hf download me/nowhere`"):
        hf_sparsify.load("me/nowhere")
    with pytest.raises(SparsifyError, match=r"me/complete@other was not .* `hf download me/complete --revision other`"):
        find_recipe("me/complete@other")
