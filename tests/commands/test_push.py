"""`sparsify push` to a server that speaks as the Hub does: what arrives there, and what is said where it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fake_hub
import hf_sparsify
import pytest
from command_line import Sparsify, files, refused
from fake_hub import FakeHub
from hf_sparsify.errors import SparsifyError
from hf_sparsify.patcher.recipe import load_recipe
from huggingface_hub import ModelCard, constants

EVAL = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "-q")
RECIPE = ["README.md", "histograms.safetensors", "sparsify.json", "thresholds.safetensors"]


@pytest.fixture
def patched(hub: FakeHub, sparsify: Sparsify, work: Path) -> Path:
    """./sparsified for a model that is on the Hub."""
    hub.publish("me/llama", work / "llama")
    assert sparsify("patch", "me/llama", "--k", "4", "--no-verify", "-q").code == 0
    return work / "sparsified"


def card(hub: FakeHub) -> str:
    return hub.repositories["me/recipe"].files["README.md"].decode()


def test_a_recipe_is_pushed_with_its_card(hub: FakeHub, patched: Path, sparsify: Sparsify) -> None:
    assert sparsify("calibrate", "-d", "q.jsonl", "-q").code == 0
    assert sparsify("eval", *EVAL).code == 0
    done = sparsify("push", "sparsified", "me/recipe", "--private", "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{hub.url}/me/recipe")
    there = hub.repositories["me/recipe"]
    assert there.private
    assert sorted(there.files) == RECIPE, "no questions, no predictions"
    assert {name: there.files[name] for name in RECIPE} == {name: (patched / name).read_bytes() for name in RECIPE}
    text = card(hub)
    data = ModelCard(text).data
    assert (data.base_model, data.library_name) == ("me/llama", "hf-sparsify")
    assert data.tags == ["sparsify", "sparse-attention", "top-theta"]
    assert "Patched: top-theta, k = 4, sdc+vmc, post-softmax in 2 modules." in text
    assert "Thresholds were fitted on 6 items of q.jsonl, at k = 4." in text
    assert 'hf_sparsify.load("me/recipe")' in text
    assert "No weights are here" in text
    [results] = patched.glob("eval/*/results.json")
    found = json.loads(results.read_text())
    row = next(line for line in text.splitlines() if line.startswith("| q.jsonl |"))
    assert f"| {found['scores']['dense'][found['primary']]:.1f} |" in row
    assert row.endswith(f"| a drop of at most 100.0 points | {found['verdict']['decision']} |")
    assert f"torch {load_recipe('sparsified').versions['torch']}" in text


def test_verdicts_on_another_plan_are_left_out(hub: FakeHub, patched: Path, sparsify: Sparsify) -> None:
    assert sparsify("eval", *EVAL).code == 0
    (patched / "eval" / "broken").mkdir()
    (patched / "eval" / "broken" / "results.json").write_text("{")
    hf_sparsify.push_to_hub("sparsified", "me/recipe")
    assert "| q.jsonl |" in card(hub)
    assert sparsify("patch", "me/llama", "--k", "5", "--no-verify", "--force", "-q").code == 0
    hf_sparsify.push_to_hub("sparsified", "me/recipe")
    assert "This recipe was not evaluated." in card(hub)
    assert not hub.repositories["me/recipe"].private


def test_a_card_that_a_person_wrote_stays(
    hub: FakeHub, patched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (patched / "README.md").write_text("mine")
    fake_hub.use(hub, tmp_path / "home", monkeypatch, token="hf_unknown")
    hf_sparsify.push_to_hub("sparsified", "me/recipe", token=fake_hub.TOKEN)
    assert card(hub) == "mine"


def test_the_model_goes_along_if_it_is_there(hub: FakeHub, sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify", "--save-model", "-q").code == 0
    (work / "sparsified" / "notes.txt").write_text("private")
    hf_sparsify.push_to_hub(work / "sparsified", "me/recipe")
    there = hub.repositories["me/recipe"].files
    assert {"config.json", "model.safetensors", "tokenizer.json", "sparsify.json"} <= there.keys()
    assert there["model.safetensors"] == (work / "sparsified" / "model.safetensors").read_bytes()
    assert "notes.txt" not in there
    assert "The weights are here too." in card(hub)
    assert str(work) not in card(hub)
    assert ModelCard(card(hub)).data.base_model is None


def test_what_cannot_be_pushed(hub: FakeHub, sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify", "-q").code == 0
    before = files(work)
    refused_push = sparsify("push", "sparsified", "me/recipe", "-q")
    refused(refused_push, 2, "which is on this machine alone: patch the model by its name on the Hub, or use")
    refused(sparsify("push", "llama", "me/recipe", "-q"), 1, "holds no recipe")
    assert files(work) == before
    assert hub.requests == []


@pytest.mark.parametrize("name", ["not/a name", "recipe"])
def test_what_is_no_name_of_a_repository(name: str, hub: FakeHub, patched: Path, sparsify: Sparsify) -> None:
    hub.requests.clear()
    refused(sparsify("push", "sparsified", name, "-q"), 2, f"'{name}' is no name of a repository")
    assert hub.requests == []


def test_whom_the_hub_does_not_know(
    hub: FakeHub, patched: Path, sparsify: Sparsify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.use(hub, tmp_path / "home", monkeypatch, token="hf_unknown")
    said = "sparsified cannot be pushed to me/recipe: the Hub answers 401, Invalid username or password: log in with"
    refused(sparsify("push", "sparsified", "me/recipe", "-q"), 1, said)
    assert not (patched / "README.md").exists()


@pytest.mark.parametrize(
    ("request_", "status", "fix"),
    [
        ("POST /api/repos/create", 403, "the Hub answers 403, no: log in with `hf auth login`"),
        ("POST /api/models/me/recipe/preupload", 403, "the Hub answers 403, no: log in with `hf auth login`"),
        ("POST /api/models/me/recipe/commit", 503, "the Hub answers 503, no: try again later"),
        ("PUT /cdn", 500, "the Hub answers 500, no: try again later"),
    ],
)
def test_a_hub_that_refuses(
    request_: str,
    status: int,
    fix: str,
    hub: FakeHub,
    patched: Path,
    sparsify: Sparsify,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sparsify("calibrate", "-d", "q.jsonl", "-q").code == 0
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between tries
    hub.refusals[request_] = status, "no"
    refused(sparsify("push", "sparsified", "me/recipe", "-q"), 1, f"sparsified cannot be pushed to me/recipe: {fix}")
    hub.refusals.clear()
    assert sparsify("push", "sparsified", "me/recipe", "-q").code == 0
    assert sorted(hub.repositories["me/recipe"].files) == RECIPE


def test_a_hub_that_cannot_be_reached(
    hub: FakeHub, patched: Path, sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(patched)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(sparsify("push", "sparsified", "me/recipe", "-q"), 1, "in offline mode: unset HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(SparsifyError, match="cannot be pushed to me/recipe: the connection to the Hub broke"):
        hf_sparsify.push_to_hub("sparsified", "me/recipe")
    assert files(patched) == before


@pytest.mark.slow
def test_from_one_machine_to_another(hub: FakeHub, tmp_path: Path) -> None:
    """In processes that read the address of the Hub from their environment."""

    def run(machine: str, *arguments: str, **changed: str) -> str:
        (tmp_path / machine).mkdir(exist_ok=True)
        environment = {**os.environ, **fake_hub.environment(hub, tmp_path / machine / "cache"), **changed}
        command = [sys.executable, "-m", "hf_sparsify.cli", *arguments, "-q"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path / machine)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def verdict(folder: Path) -> object:
        [path] = folder.glob("*/results.json")
        return json.loads(path.read_text())["verdict"]

    ask = ("--dataset", "demo", "--limit", "4", "--max-drop", "100")
    run("hers", "patch", "demo-llama", "--save-model")
    run("hers", "eval", *ask)
    assert run("hers", "push", "sparsified", "me/recipe").startswith(f"{hub.url}/me/recipe")
    assert "| demo (validation) | 4 |" in card(hub)
    made = verdict(tmp_path / "hers" / "sparsified" / "eval")
    hub.requests.clear()
    run("his", "eval", "me/recipe", *ask)
    assert "model.safetensors" in hub.downloads
    there = tmp_path / "his" / "sparsified-eval"
    assert verdict(there) == made
    shutil.rmtree(there)
    hub.requests.clear()
    run("his", "eval", "me/recipe", *ask, "--no-cache", HF_HUB_OFFLINE="1")
    assert verdict(there) == made
    assert hub.requests == []
