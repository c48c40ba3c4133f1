"""Models that write the answer, as a task: what fits, and inputs to calibrate on. The arms are in test_run.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_language_models
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.formats import read_questions
from hf_sparsify.evaluation.questions import QuestionSet, make_question_set
from hf_sparsify.evaluation.tasks import TASKS, task_for
from hf_sparsify.evaluation.tasks.generative import Generative
from hf_sparsify.patcher.binding.loading import AUTO_CLASSES, load_model


@pytest.fixture
def questions(tmp_path: Path) -> QuestionSet:
    return make_question_set("q", "", read_questions(tiny_language_models.save_questions(tmp_path / "q.jsonl", 3)))


def test_every_loadable_model_has_a_task() -> None:
    assert set(TASKS) == set(AUTO_CLASSES)
    assert len({task.name for task in TASKS.values()}) == 3


def test_a_model_without_a_task_is_refused(tmp_path: Path, questions: QuestionSet) -> None:
    loaded = load_model(str(tiny_language_models.save("gpt2", tmp_path / "gpt2")))
    with pytest.raises(UsageError, match="there is no task for seeing"):
        task_for(replace(loaded, base=replace(loaded.base, task="seeing")), questions)


def test_room_and_calibration_inputs(tmp_path: Path, questions: QuestionSet) -> None:
    loaded = load_model(str(tiny_language_models.save("gpt2", tmp_path / "gpt2")))
    question = questions.questions[0]
    task = task_for(loaded, questions, max_new_tokens=5)
    assert isinstance(task, Generative)
    length = task.tokens(question)
    assert length is not None
    [sample] = task.calibration_inputs(question)
    assert sample["input_ids"].shape == (1, length + 1), "the prompt and its one word of answer"
    assert task_for(loaded, questions, max_new_tokens=96 - length).tokens(question) == length
    assert task_for(loaded, questions, max_new_tokens=97 - length).tokens(question) is None
    long = replace(question, id="long", context=question.context * 5)
    assert task.calibration_inputs(long) == []
    with pytest.raises(UsageError, match="--max-new-tokens 96 is too many"):
        task_for(loaded, questions, max_new_tokens=96).check()
