"""Recipes on the Hub: told from models, downloaded, loaded and uploaded with a card. The Hub is a folder here."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import hf_sparsify
import huggingface_hub
import pytest
from command_line import Sparsify, contents, files, refused
from hf_sparsify.commands import recipe_source
from hf_sparsify.commands.recipe_source import find_recipe
from hf_sparsify.errors import SparsifyError, UsageError
from hf_sparsify.patcher.binding.patching import current_patch
from hf_sparsify.patcher.recipe import load_recipe
from huggingface_hub import ModelCard, constants

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
    for name in ("me/nowhere", "me/complete@other", "gpt2", "llama", "demo-t5", "../up", "https://x/y", "me/a b"):
        assert find_recipe(name) is None
    refused(sparsify("eval", "me/nowhere", *EVAL), 1, "unknown model 'me/nowhere'")
    with pytest.raises(UsageError, match="me/nowhere holds no recipe"):
        hf_sparsify.load("me/nowhere")


@dataclass
class Planned:
    file_size: int | None


def test_online_only_the_recipes_files_are_fetched_within_bounds(
    complete: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, asked = [None, 5], []

    def snapshot(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return [Planned(size) for size in sizes] if options.get("dry_run") else str(complete)

    monkeypatch.setattr(recipe_source, "hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *arguments, **options: "")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = find_recipe("me/complete@v1")
    assert found == recipe_source.RecipeSource(complete, "me/complete@v1")
    wanted = ["sparsify.json", "thresholds.safetensors", "histograms.safetensors", "config.json"]
    assert [options["allow_patterns"] for _, options in asked] == [wanted, wanted]
    assert {options["revision"] for _, options in asked} == {"v1"}
    sizes.append(2**40)
    with pytest.raises(SparsifyError, match="me/complete cannot be downloaded: a file is larger than 256 MiB"):
        find_recipe("me/complete")


class FakeHub:
    """What HfApi is asked for, and what would be uploaded."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.uploaded: dict[str, bytes] = {}

    def HfApi(self, token: str | None = None) -> FakeHub:
        self.asked.append(token)
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        self.asked.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> str:
        for name, content in contents(folder_path).items():
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                self.uploaded[name] = content
        return f"https://huggingface.co/{repo_id}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", fake.HfApi)
    return fake


def test_a_recipe_is_pushed_with_its_card(hub: FakeHub, sparsify: Sparsify, work: Path) -> None:
    publish(work / "llama", "me/llama")
    assert sparsify("patch", "me/llama", "--k", "4", "--no-verify", "-q").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "-q").code == 0
    assert sparsify("eval", *EVAL).code == 0
    done = sparsify("push", "sparsified", "me/recipe", "--private", "-q")
    assert (done.code, done.out) == (0, "https://huggingface.co/me/recipe\n")
    assert hub.asked == [None, ("me/recipe", True, True)]
    recipe_files = ["README.md", "histograms.safetensors", "sparsify.json", "thresholds.safetensors"]
    assert sorted(hub.uploaded) == recipe_files, "no questions, no predictions"
    text = hub.uploaded["README.md"].decode()
    card = ModelCard(text)
    assert card.data.base_model == "me/llama"
    assert card.data.library_name == "hf-sparsify"
    assert card.data.tags == ["sparsify", "sparse-attention", "top-theta"]
    assert "Patched: top-theta, k = 4, sdc+vmc, post-softmax in 2 modules." in text
    assert "Thresholds were fitted on 6 items of q.jsonl, at k = 4." in text
    assert 'hf_sparsify.load("me/recipe")' in text
    assert "No weights are here" in text
    [results] = (work / "sparsified" / "eval").glob("*/results.json")
    found = json.loads(results.read_text())
    row = next(line for line in text.splitlines() if line.startswith("| q.jsonl |"))
    assert f"| {found['scores']['dense'][found['primary']]:.1f} |" in row
    assert row.endswith(f"| a drop of at most 100.0 points | {found['verdict']['decision']} |")
    assert f"torch {load_recipe('sparsified').versions['torch']}" in text


def test_verdicts_on_another_plan_are_left_out(hub: FakeHub, sparsify: Sparsify, work: Path) -> None:
    publish(work / "llama", "me/llama")
    assert sparsify("patch", "me/llama", "--k", "4", "--no-verify", "-q").code == 0
    assert sparsify("eval", *EVAL).code == 0
    (work / "sparsified" / "eval" / "broken").mkdir()
    (work / "sparsified" / "eval" / "broken" / "results.json").write_text("{")
    hf_sparsify.push_to_hub("sparsified", "me/recipe")
    assert "| q.jsonl |" in hub.uploaded["README.md"].decode()
    assert sparsify("patch", "me/llama", "--k", "5", "--no-verify", "--force", "-q").code == 0
    hf_sparsify.push_to_hub("sparsified", "me/recipe")
    assert "This recipe was not evaluated." in hub.uploaded["README.md"].decode()


def test_a_card_that_a_person_wrote_stays(hub: FakeHub, sparsify: Sparsify, work: Path) -> None:
    publish(work / "llama", "me/llama")
    assert sparsify("patch", "me/llama", "--k", "4", "--no-verify", "-q").code == 0
    (work / "sparsified" / "README.md").write_text("mine")
    hf_sparsify.push_to_hub("sparsified", "me/recipe", token="secret")
    assert hub.uploaded["README.md"] == b"mine"
    assert hub.asked == ["secret", ("me/recipe", None, True)]


def test_the_model_goes_along_if_it_is_there(complete: Path, hub: FakeHub, work: Path) -> None:
    (work / "sparsified" / "notes.txt").write_text("private")
    hf_sparsify.push_to_hub(work / "sparsified", "me/recipe")
    assert {"config.json", "model.safetensors", "tokenizer.json", "sparsify.json"} <= hub.uploaded.keys()
    assert "notes.txt" not in hub.uploaded
    text = hub.uploaded["README.md"].decode()
    assert "The weights are here too." in text
    assert str(work) not in text
    assert ModelCard(text).data.base_model is None


def test_what_cannot_be_pushed(sparsify: Sparsify, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify", "-q").code == 0
    before = files(work)
    refused_push = sparsify("push", "sparsified", "me/recipe", "-q")
    refused(refused_push, 2, "which is on this machine alone: patch the model by its name on the Hub, or use")
    refused(sparsify("push", "llama", "me/recipe", "-q"), 1, "holds no recipe")
    publish(work / "llama", "me/llama")
    assert sparsify("patch", "me/llama", "--k", "4", "--no-verify", "--force", "-q").code == 0
    # The real one, in offline mode.
    refused(sparsify("push", "sparsified", "me/recipe", "-q"), 1, "sparsified cannot be pushed to me/recipe:")
    refused(sparsify("push", "sparsified", "not a name", "-q"), 2, "'not a name' is no name of a repository")
    assert files(work) == before
