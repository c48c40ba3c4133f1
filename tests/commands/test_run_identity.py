"""What makes two evaluations the same run, and two dense answers the same answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from command_line import Sparsify, refused

EVAL = ("eval", "-d", "q.jsonl", "--max-drop", "100", "--max-new-tokens", "2")


@pytest.fixture
def own(work: Path) -> Path:
    """A model of one's own to change."""
    (work / "llama").unlink()
    return tiny_language_models.save("llama", work / "llama", chat=True)


def results(sparsify: Sparsify, *options: str) -> dict[str, Any]:
    done = sparsify(*EVAL, *options, "--json")
    assert done.code == 0, done.err
    return {**json.loads(done.out), "was_there": "was there already" in done.err}


def test_other_examples_are_another_run(sparsify: Sparsify, recipe: Path) -> None:
    tiny_language_models.save_questions(Path("shots.jsonl"), 9)
    first = results(sparsify, "--shots", "1", "--shots-from", "shots.jsonl")
    Path("shots.jsonl").write_text(Path("shots.jsonl").read_text().replace("Where is", "Where is the"))
    second = results(sparsify, "--shots", "1", "--shots-from", "shots.jsonl")
    assert first["prompt"]["first"] != second["prompt"]["first"]
    assert first["run"] != second["run"]
    assert not second["was_there"]
    assert results(sparsify, "--shots", "1", "--shots-from", "shots.jsonl")["was_there"]


def test_another_chat_template_or_tokenizer_is_another_run(sparsify: Sparsify, own: Path) -> None:
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    first = results(sparsify)
    template = tiny_language_models.CHAT_TEMPLATE.replace("assistant :", "Answer :")
    (own / "chat_template.jinja").write_text(template)
    second = results(sparsify)
    assert second["run"] != first["run"]
    assert second["dense_from_cache"] == 0
    tokenizer = json.loads((own / "tokenizer.json").read_text())
    tokenizer["decoder"] = {"type": "Fuse"}  # the same tokens, written down without spaces
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    third = results(sparsify)
    assert third["run"] != second["run"]
    assert third["dense_from_cache"] == 0


def test_another_pooling_is_another_dense_model(sparsify: Sparsify, work: Path) -> None:
    (work / "bert").unlink()
    folder = tiny_language_models.save("bert", work / "bert")
    assert sparsify("patch", "bert", "--k", "4", "--no-verify").code == 0
    first = results(sparsify)
    assert results(sparsify)["was_there"], "weights that are random at every load, and unused, change nothing"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    second = results(sparsify)
    assert second["dense_from_cache"] == 0
    assert second["run"] != first["run"]


def test_junk_in_the_cache_is_passed_over(sparsify: Sparsify, recipe: Path, hugging_face_home: Path) -> None:
    first = results(sparsify, "-o", "first")
    (file,) = (hugging_face_home / "hf_sparsify" / "dense").iterdir()
    lines = file.read_bytes().split(b"\n")
    names = [json.loads(line)["name"] for line in lines if b'"name"' in line]
    junk = [b"\xff\xfe", b"[]", b"5"] + [json.dumps({"name": name, "answer": 5}).encode() for name in names]
    file.write_bytes(b"\n".join([*lines[:2], *junk]))
    second = results(sparsify, "-o", "second")
    assert (second["dense_from_cache"], second["scores"]) == (0, first["scores"])


def test_a_folder_with_other_results_is_not_taken(sparsify: Sparsify, recipe: Path) -> None:
    Path("mine").mkdir()
    Path("mine/results.json").write_text("[1]")
    refused(sparsify(*EVAL, "-o", "mine"), 2, "mine exists already")
    assert Path("mine/results.json").read_text() == "[1]"


def test_the_report_says_that_nothing_was_run(sparsify: Sparsify, recipe: Path) -> None:
    assert "note: nothing was run" not in sparsify(*EVAL).out
    assert "nothing was run" in sparsify(*EVAL, "-q").out
    assert "nothing was run" not in sparsify(*EVAL, "--no-cache").out


@pytest.mark.parametrize("model", ["bert-qa", "bert"])
@pytest.mark.parametrize("options", [("--shots", "1", "--shots-from", "shots.jsonl"), ("--prompt-template", "t.txt")])
def test_prompts_are_for_models_that_are_told(model: str, options: tuple[str, ...], sparsify: Sparsify) -> None:
    tiny_language_models.save_questions(Path("shots.jsonl"), 9)
    Path("t.txt").write_text("{question}")
    assert sparsify("patch", model, "--k", "4", "--no-verify").code == 0
    refused(sparsify(*EVAL, *options), 2, "--shots and --prompt-template are for models that are told what to do")


def test_examples_of_another_kind_are_refused(sparsify: Sparsify, recipe: Path) -> None:
    rows = [{"text": f"Ann is in the {place}", "label": "ab"[i % 2]} for i, place in enumerate(("den", "hall"))]
    Path("labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--shots", "1", "--shots-from", "labels.jsonl")
    refused(sparsify(*EVAL, *options), 2, "labels.jsonl is of another kind than q.jsonl")


def test_a_run_without_the_cache_goes_on_too(sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    command = (*EVAL, "--batch-size", "2", "--no-cache", "-o", "run")
    with monkeypatch.context() as patching:
        patching.setattr("hf_sparsify.commands.evaluate.describe", interrupted)
        assert sparsify(*command).code == 130
    monkeypatch.setattr("hf_sparsify.evaluation.tasks.generative.generate_greedy", None)
    assert sparsify(*command).code == 0, "all batches were done"
