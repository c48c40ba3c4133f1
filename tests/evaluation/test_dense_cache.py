"""Dense answers are kept by key and input, survive a cut line, and follow every property of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_language_models
import torch
from both_arms import plan_for
from hf_sparsify.evaluation.dense_cache import DenseCache, default_folder, dense_key
from hf_sparsify.evaluation.formats import read_items
from hf_sparsify.evaluation.run import Contender, evaluate
from hf_sparsify.evaluation.tasks import Task, TaskOptions, task_for
from hf_sparsify.patcher.binding.loading import LoadedModel, LoadOptions, load_model
from hf_sparsify.patcher.methods import TopK


@pytest.fixture
def llama(tmp_path: Path) -> LoadedModel:
    return load_model(str(tiny_language_models.save("llama", tmp_path / "llama")))


def task_of(loaded: LoadedModel, folder: Path, count: int = 6, **options: int) -> Task:
    items = read_items(tiny_language_models.save_questions(folder / f"q{count}.jsonl", count))
    return task_for(loaded, items, TaskOptions(**{"max_new_tokens": 4, **options}))


def test_answers_are_found_again(tmp_path: Path) -> None:
    cache = DenseCache({"model": "a"}, tmp_path)
    cache.add({"one": {"answer": "x"}, "two": {"answer": "é"}})
    cache.add({"two": {"answer": "é"}})
    again = DenseCache({"model": "a"}, tmp_path)
    assert again.answers == {"one": {"answer": "x"}, "two": {"answer": "é"}}
    assert len([line for line in cache.file.read_text().splitlines() if line]) == 3, "the key and two answers"
    assert DenseCache({"model": "b"}, tmp_path).answers == {}


def test_a_line_that_was_cut_short_costs_one_answer(tmp_path: Path) -> None:
    cache = DenseCache({"model": "a"}, tmp_path)
    cache.add({"one": {"answer": "x"}, "two": {"answer": "y"}})
    cache.file.write_bytes(cache.file.read_bytes()[:-7])
    again = DenseCache({"model": "a"}, tmp_path)
    assert set(again.answers) == {"one"}
    again.add({"two": {"answer": "y"}, "three": {"answer": "z"}})
    assert set(DenseCache({"model": "a"}, tmp_path).answers) == {"one", "two", "three"}


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = DenseCache({"model": "a"}, tmp_path / "file" / "below")
    cache.add({"one": {"answer": "x"}})
    cache.add({"two": {"answer": "y"}})
    assert [record.message.split(":")[0] for record in caplog.records] == ["warning"]


def test_it_is_below_the_hugging_face_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "hf_sparsify" / "dense"


def test_a_later_recipe_runs_the_dense_model_no_more(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(llama, tmp_path)
    key = dense_key(llama, task)
    first = evaluate(llama, [Contender(plan_for(llama, TopK(k=4)))], task, cache=DenseCache(key, tmp_path))[0]
    assert first.journal.cached == 0

    calls = []
    predict = type(task).predict
    monkeypatch.setattr(type(task), "predict", lambda *a, **k: calls.append(k) or predict(*a, **k))
    plan = plan_for(llama, TopK(k=2))
    second = evaluate(llama, [Contender(plan)], task_of(llama, tmp_path), cache=DenseCache(key, tmp_path))[0]
    assert second.journal.cached == 6
    assert len(calls) == 1, "the patched model alone"
    assert second.journal.seconds["dense"] == 0
    anew = evaluate(llama, [Contender(plan)], task_of(llama, tmp_path))[0]
    assert [record.to_dict() for record in anew.records] == [record.to_dict() for record in second.records]


def test_more_items_run_only_what_is_new(llama: LoadedModel, tmp_path: Path) -> None:
    plan = plan_for(llama, TopK(k=4))
    task = task_of(llama, tmp_path, 3, batch_size=1)
    evaluate(llama, [Contender(plan)], task, cache=DenseCache(dense_key(llama, task), tmp_path))
    task = task_of(llama, tmp_path, 6, batch_size=1)
    found = evaluate(llama, [Contender(plan)], task, cache=DenseCache(dense_key(llama, task), tmp_path))[0]
    assert found.journal.cached == 3


def test_the_key_knows_what_changes_answers(llama: LoadedModel, tmp_path: Path) -> None:
    def key(loaded: LoadedModel, **options: int) -> str:
        return json.dumps(dense_key(loaded, task_of(loaded, tmp_path, **options)), sort_keys=True, default=str)

    seen = [key(llama), key(llama, max_new_tokens=5)]
    assert key(llama) == seen[0]
    assert key(llama, batch_size=2) == seen[0], "batches change no answer"
    eager = load_model(llama.base.id)
    eager.model.set_attn_implementation("eager")
    seen.append(key(eager))
    seen.append(key(load_model(llama.base.id, LoadOptions(dtype="bfloat16"))))
    tuned = load_model(llama.base.id)
    with torch.no_grad():
        next(tuned.model.parameters())[0, 0] += 1e-3
    seen.append(key(tuned))
    tuned = load_model(llama.base.id)
    tuned.model.generation_config.repetition_penalty = 1.3
    seen.append(key(tuned))
    assert len(set(seen)) == len(seen)


def test_a_run_does_not_read_what_it_wrote(tmp_path: Path) -> None:
    DenseCache({"model": "a"}, tmp_path, run="first").add({"one": {"answer": "x"}})
    DenseCache({"model": "a"}, tmp_path, run="second").add({"one": {"answer": "y"}, "two": {"answer": "z"}})
    assert DenseCache({"model": "a"}, tmp_path, run="first").answers == {"two": {"answer": "z"}}
    assert DenseCache({"model": "a"}, tmp_path, run="second").answers == {"one": {"answer": "x"}}
    third = DenseCache({"model": "a"}, tmp_path, run="third")
    assert third.answers == {"one": {"answer": "x"}, "two": {"answer": "z"}}, "the first that was kept counts"
