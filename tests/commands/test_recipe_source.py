"""Recipes from a server that speaks as the Hub does: what is fetched of them, what is not, and how it can go wrong."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import fake_hub
import hf_sparsify
import pytest
from command_line import Sparsify, contents, refused
from fake_hub import FakeHub
from fake_repository import Repository
from hf_sparsify.commands.recipe_source import RecipeSource, find_recipe
from hf_sparsify.errors import SparsifyError, UsageError
from hf_sparsify.patcher.binding.patching import current_patch
from huggingface_hub import constants

EVAL = ("-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "-q")
OWN = ["config.json", "histograms.safetensors", "sparsify.json", "thresholds.safetensors"]


@pytest.fixture
def there(hub: FakeHub, sparsify: Sparsify, work: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A calibrated recipe with its model on the Hub as me/complete, and nothing of it here."""
    assert sparsify("patch", "llama", "--k", "4", "--no-verify", "--save-model", "-q").code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "-q").code == 0
    shutil.move(work / "sparsified", work.parent / "made")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between tries
    return hub.publish("me/complete", work.parent / "made")


def method(name: str) -> set[str]:
    return {part.method.name for part in current_patch(hf_sparsify.load(name).model).module_patches}


def test_the_second_time_nothing_is_downloaded(hub: FakeHub, there: Repository, sparsify: Sparsify) -> None:
    assert sparsify("eval", "me/complete", *EVAL).code == 0
    assert set(OWN) | {"model.safetensors", "tokenizer.json"} <= set(hub.downloads)
    assert len(hub.downloads) == len(set(hub.downloads))
    hub.requests.clear()
    assert sparsify("eval", "me/complete", *EVAL).code == 0
    assert method("me/complete") == {"top-theta"}
    assert hub.downloads == []


def test_offline_what_was_downloaded_is_found(
    hub: FakeHub, there: Repository, sparsify: Sparsify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert method("me/complete") == {"top-theta"}
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert method("me/complete") == {"top-theta"}
    assert sparsify("eval", "me/complete", *EVAL).code == 0
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    missing = "was not downloaded before, and the Hub cannot be reached: fetch it where there is a network with `hf"
    refused(sparsify("validate", "me/complete", "-q"), 2, f"me/complete {missing} download me/complete`")
    refused(sparsify("eval", "me/complete", *EVAL), 1, "unknown model 'me/complete'")
    with pytest.raises(UsageError, match=missing):
        hf_sparsify.load("me/complete")
    assert hub.requests == []


def test_revisions(hub: FakeHub, there: Repository, sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "2", "--no-verify", "-q").code == 0
    newer = {"sparsify.json": (work / "sparsified" / "sparsify.json").read_bytes()}
    commit = there.commit(newer, "newer")
    assert method("me/complete") == method("me/complete@main") == {"top-theta"}
    assert method("me/complete@newer") == method(f"me/complete@{commit}") == {"top-k"}
    there.commit(newer)
    assert method("me/complete") == {"top-k"}
    said = "the recipe me/complete@gone cannot be downloaded: it has no such branch, tag or commit"
    refused(sparsify("eval", "me/complete@gone", *EVAL), 1, said)


def test_what_a_stranger_put_there_is_left_there(
    hub: FakeHub, there: Repository, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = {"modeling.py": b"open('ran', 'w')", "pytorch_model.bin": b"\x80", "eval/1/results.json": b"{}"}
    there.commit(strange)
    found = find_recipe("me/complete")
    assert isinstance(found, RecipeSource)
    assert hub.downloads == OWN
    assert sorted(contents(found.directory)) == OWN
    assert method("me/complete") == {"top-theta"}
    assert set(hub.downloads).isdisjoint(strange)
    assert not (work / "ran").exists()


@pytest.mark.parametrize("file", OWN)
def test_large_files_are_refused_before_the_first_byte(
    file: str, hub: FakeHub, there: Repository, sparsify: Sparsify
) -> None:
    there.sizes[file] = 2**40
    refused(
        sparsify("eval", "me/complete", *EVAL), 1, f"me/complete cannot be downloaded: its {file} is larger than 256"
    )
    assert hub.downloads == []


@pytest.mark.parametrize("file", [*OWN, "model.safetensors"])
def test_a_connection_that_breaks_in_the_middle_of_a_file(
    file: str, hub: FakeHub, there: Repository, sparsify: Sparsify
) -> None:
    hub.broken.add(file)
    what = "the model" if file == "model.safetensors" else "the recipe"
    done = sparsify("eval", "me/complete", *EVAL)
    refused(done, 1, f"{what} me/complete cannot be")
    assert "the connection to the Hub broke" in done.err
    hub.broken.clear()
    assert method("me/complete") == {"top-theta"}


def test_what_is_not_there_or_not_for_us(
    hub: FakeHub, there: Repository, sparsify: Sparsify, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = "check the name, or log in with `hf auth login`"
    refused(
        sparsify("eval", "me/nowhere", *EVAL), 1, "unknown model 'me/nowhere': there is no such folder (a recipe or"
    )
    refused(sparsify("eval", "me/nowhere", *EVAL), 1, login)
    refused(sparsify("eval", "me/nowhere@v1", *EVAL), 1, "me/nowhere@v1 cannot be downloaded: it is not there, or not")
    refused(sparsify("validate", "me/nowhere", "-q"), 2, "me/nowhere holds no recipe, or is not on the Hub for you")
    hub.publish("me/llama", work / "llama")
    with pytest.raises(UsageError, match=r"me/llama holds no recipe.*`sparsify patch MODEL`"):
        hf_sparsify.load("me/llama")
    there.private = True
    assert method("me/complete") == {"top-theta"}
    fake_hub.use(hub, tmp_path / "stranger", monkeypatch, token="hf_unknown")
    refused(sparsify("eval", "me/complete", *EVAL), 1, login)
    assert not (tmp_path / "stranger" / "hub").exists()


@pytest.mark.parametrize("token", [fake_hub.TOKEN, "hf_unknown"], ids=["403", "401"])
def test_gated(
    token: str,
    hub: FakeHub,
    there: Repository,
    sparsify: Sparsify,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.publish("me/llama", work / "llama").gated = there.gated = True
    fake_hub.use(hub, tmp_path / "theirs", monkeypatch, token=token)
    ask = "it is gated: ask for access on its page on the Hub, and log in with `hf auth login`"
    refused(sparsify("eval", "me/complete", *EVAL), 1, f"the recipe me/complete cannot be downloaded: {ask}")
    with pytest.raises(SparsifyError, match="it is gated"):
        hf_sparsify.load("me/complete")
    refused(sparsify("eval", "me/llama", *EVAL), 1, f"me/llama cannot be downloaded: {ask}")


@pytest.mark.parametrize(
    ("request_", "status", "fix"),
    [
        ("HEAD /me", 503, "the Hub answers 503, down: try again later"),
        ("GET /api/models", 500, "the Hub answers 500, down: try again later"),
        ("GET /me", 403, "the Hub answers 403, down: log in with `hf auth login`"),
    ],
)
def test_a_hub_that_is_down(
    request_: str, status: int, fix: str, hub: FakeHub, there: Repository, sparsify: Sparsify
) -> None:
    hub.refusals[request_] = status, "down"
    refused(sparsify("eval", "me/complete", *EVAL), 1, f"me/complete cannot be downloaded: {fix}")


def test_what_was_downloaded_is_found_when_the_hub_is_down(hub: FakeHub, there: Repository) -> None:
    assert method("me/complete") == {"top-theta"}
    hub.refusals |= {"HEAD /me": (503, "down"), "GET /me": (503, "down"), "GET /api": (503, "down")}
    assert method("me/complete") == {"top-theta"}


def test_a_model_that_was_downloaded_is_opened_whatever_the_hub_says(
    hub: FakeHub, there: Repository, work: Path, sparsify: Sparsify
) -> None:
    model = hub.publish("me/llama", work / "llama")
    assert sparsify("eval", "me/llama", *EVAL).code == 0
    model.gated = True
    assert sparsify("eval", "me/llama", *EVAL).code == 0
