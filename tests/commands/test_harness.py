"""`sparsify eval --harness` as typed."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from command_line import Sparsify, files, refused
from harness_tasks import save_task, save_writing_task

pytest.importorskip("lm_eval")


@pytest.fixture
def tasks(work: Path) -> None:
    save_task(work, "choosing")
    save_writing_task(work)


@pytest.mark.usefixtures("tasks", "recipe")
def test_one_task(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("eval", "--harness", "choosing.yaml", "--limit", "5", "--by-module")
    assert done.code == 0, done.err
    assert "5 items of choosing (validation); patched: top-k, k = 4" in done.out
    assert "INCONCLUSIVE" in done.out
    assert "Kept per module" in done.out
    assert "evaluating: 10 of 10" in done.err
    assert {line.split()[0] for line in done.err.splitlines()} <= {"loading", "evaluating:", "wrote"}
    [run] = (work / "sparsified/eval").iterdir()
    assert run.name.startswith("harness-choosing-")
    results = json.loads((run / "results.json").read_text())
    assert (results["task"], results["primary"]) == ("lm-evaluation-harness", "acc,none")
    assert results["dataset"]["items"] == len((run / "predictions.jsonl").read_text().splitlines()) == 5
    assert results["kept"]["total"]["kept_per_k"] == 1

    before = (run / "predictions.jsonl").read_bytes()
    assert sparsify("eval", "--harness", "choosing.yaml", "--limit", "5", "--quiet").code == 0
    assert [path.name for path in (work / "sparsified/eval").iterdir()] == [run.name]
    assert (run / "predictions.jsonl").read_bytes() == before


@pytest.mark.usefixtures("tasks", "recipe")
def test_calls_are_told_to_who_asks(sparsify: Sparsify) -> None:
    done = sparsify("eval", "--harness", "choosing.yaml", "--limit", "5", "--verbose")
    assert done.code == 0, done.err
    assert len([line for line in done.err.splitlines() if line.startswith("calls: ")]) == 1


@pytest.mark.usefixtures("tasks", "recipe")
def test_several_tasks_and_recipes_are_judged_together(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("patch", "llama", "--k", "400", "--no-verify", "-o", "wide").code == 0
    done = sparsify("eval", "sparsified", "wide", "--harness", "choosing.yaml,writing.yaml", "--max-drop", "100")
    assert done.code == 0, done.err
    assert "4 verdicts" in done.out
    assert "exact_match" in done.out
    assert [len(list((work / recipe / "eval").iterdir())) for recipe in ("sparsified", "wide")] == [2, 2]

    done = sparsify("eval", "sparsified", "wide", "--harness", "choosing.yaml", "--json", "--shots", "1", "--seed", "3")
    assert done.code == 0, done.err
    several = json.loads(done.out)
    assert [results["recipe"] for results in several] == ["sparsified", "wide"]
    assert all(results["verdict"]["p_holm"] is not None for results in several)
    assert ", 1 examples," in several[0]["prompt"]["style"]
    assert several[1]["same_answer_share"] == 1


@pytest.mark.usefixtures("tasks")
def test_a_model_without_a_recipe_and_a_place_of_its_own(sparsify: Sparsify, work: Path) -> None:
    assert sparsify("eval", "t5", "--harness", "writing.yaml", "-q").code == 0
    assert [path.name[:16] for path in (work / "sparsified-eval").iterdir()] == ["harness-writing-"]
    for _ in range(2):  # the second time it is replaced
        assert sparsify("eval", "t5", "--harness", "writing.yaml", "-q", "-o", "here").code == 0
    refused(sparsify("eval", "t5", "--harness", "choosing.yaml", "-o", "here"), 2, "here exists already")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("--harness choosing.yaml -d q.jsonl", 2, "--dataset does not go with --harness"),
        ("--harness choosing.yaml --split test", 2, "--split does not go with --harness"),
        ("--harness choosing.yaml --distractors 2", 2, "--distractors does not go with --harness"),
        ("--harness choosing.yaml --prompt-template q.jsonl", 2, "--prompt-template does not go with --harness"),
        ("--harness choosing.yaml --shots 1 --shots-from q.jsonl", 2, "--shots-from does not go with --harness"),
        ("--harness choosing.yaml --max-new-tokens 8", 2, "--max-new-tokens does not go with --harness"),
        ("--harness choosing.yaml --max-input-tokens 8", 2, "--max-input-tokens does not go with --harness"),
        ("--harness choosing.yaml,writing.yaml -o here", 2, "-o names one directory, and every task"),
        ("--harness gone.yaml", 2, "--harness gone.yaml: there is no such file"),
        ("--harness code.yaml", 2, "pass --trust-remote-code to run it"),
        ("--harness ,", 2, "--harness is empty"),
        ("bert-qa --harness choosing.yaml", 2, "cannot be asked by the harness"),
    ],
)
@pytest.mark.usefixtures("tasks", "recipe")
def test_refused(arguments: str, code: int, sentence: str, sparsify: Sparsify, work: Path) -> None:
    (work / "code.yaml").write_text("task: code\ndoc_to_text: !function code.text\n")
    before = files(work)
    refused(sparsify("eval", *arguments.split()), code, sentence)
    assert files(work) == before


@pytest.mark.usefixtures("tasks", "recipe")
def test_several_processes_are_refused(sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(sparsify("eval", "--harness", "choosing.yaml"), 2, "--harness runs in one process")


@pytest.mark.slow
@pytest.mark.usefixtures("recipe")
def test_names_of_the_harness(sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow, because the harness reads all of its task files; once is enough."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.cache(TaskManager))
    refused(sparsify("eval", "--harness", "arc_eazy"), 2, "there is no such task and no such file; there is arc_easy")
    refused(sparsify("eval", "--harness", "arc_easy"), 1, "the Hugging Face Hub cannot be reached")
