"""Models that write the answer, as a task: what fits, and inputs to calibrate on. The arms are in test_run.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_language_models
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets.base import ANSWERS, CHOICES, ENCODED, LABELS, SPEECH, TEXT
from hf_sparsify.evaluation.formats import read_items
from hf_sparsify.evaluation.items import ItemSet
from hf_sparsify.evaluation.tasks import TASKS, TaskOptions, task_for
from hf_sparsify.evaluation.tasks.base import Task
from hf_sparsify.evaluation.tasks.generative import Generative
from hf_sparsify.patcher.binding.loading import load_model
from hf_sparsify.patcher.binding.tasks import AUTO_CLASSES, TRANSCRIBING, WITHOUT_TEXT


@pytest.fixture
def questions(tmp_path: Path) -> ItemSet:
    return read_items(tiny_language_models.save_questions(tmp_path / "q.jsonl", 3), "q")


def test_every_loadable_model_has_a_task() -> None:
    assert {model for _, model in TASKS} == set(AUTO_CLASSES) - WITHOUT_TEXT | TRANSCRIBING
    assert {data for data, _ in TASKS} == {ANSWERS, CHOICES, ENCODED, LABELS, SPEECH, TEXT}
    names = {data: {task.name for (kind, _), task in TASKS.items() if kind == data} for data, _ in TASKS}
    assert names == {
        ANSWERS: {"generative", "extractive", "retrieval"},
        ENCODED: {"generative"},
        CHOICES: {"multiple-choice"},
        LABELS: {"multiple-choice", "classification"},
        SPEECH: {"asr"},
        TEXT: {"fidelity"},
    }


def test_a_model_without_a_task_is_refused(tmp_path: Path, questions: ItemSet) -> None:
    loaded = load_model(str(tiny_language_models.save("gpt2", tmp_path / "gpt2")))
    refused = (
        r"gpt2 \(seeing\) cannot be evaluated on q: answers need a model for "
        "causal-lm or encoder or question-answering or seq2seq-lm"
    )
    with pytest.raises(UsageError, match=refused):
        task_for(replace(loaded, base=replace(loaded.base, task="seeing")), questions)


def test_room_and_calibration_inputs(tmp_path: Path, questions: ItemSet) -> None:
    loaded = load_model(str(tiny_language_models.save("gpt2", tmp_path / "gpt2")))
    question = questions.items[0]

    def task_with(max_new_tokens: int) -> Task:
        return task_for(loaded, questions, TaskOptions(max_new_tokens=max_new_tokens))

    task = task_with(5)
    assert isinstance(task, Generative)
    prompt = task.input_ids(question)
    assert prompt is not None
    length = len(prompt)
    [sample] = task.calibration_inputs(question)
    assert sample["input_ids"].shape == (1, length + 1), "the prompt and its one word of answer"
    assert task_with(96 - length).input_ids(question) == prompt
    assert task_with(97 - length).input_ids(question) is None
    long = replace(question, id="long", context=question.context * 5)
    assert task.calibration_inputs(long) == []
    with pytest.raises(UsageError, match="--max-new-tokens 96 is too many"):
        task_with(96).check()


def test_an_encoders_prompts_are_cut_where_that_is_asked(tmp_path: Path, questions: ItemSet) -> None:
    loaded = load_model(str(tiny_language_models.save("t5", tmp_path / "t5")))
    whole = task_for(loaded, questions).input_ids(questions.items[0])
    cut = task_for(loaded, questions, TaskOptions(max_input_tokens=4)).input_ids(questions.items[0])
    assert whole is not None
    assert cut == [*whole[:3], whole[-1]]
    with pytest.raises(UsageError, match="--max-input-tokens must be at least 1, not 0"):
        TaskOptions(max_input_tokens=0)
