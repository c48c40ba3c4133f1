"""What the evaluation has a model do with questions: one file for each task."""

from __future__ import annotations

from ...errors import UsageError
from ...patcher.binding.loading import LoadedModel
from ..questions import QuestionSet
from .base import Task
from .extractive import Extractive
from .generative import Generative
from .retrieval import Retrieval

# A model's task (see patcher.binding.loading.task_of) -> what it does here.
TASKS: dict[str, type[Task]] = {
    "causal-lm": Generative,
    "seq2seq-lm": Generative,
    "question-answering": Extractive,
    "encoder": Retrieval,
}


def task_for(loaded: LoadedModel, questions: QuestionSet, *, batch_size: int = 8, max_new_tokens: int = 32) -> Task:
    """The task of a model on some questions. max_new_tokens: the longest answer, for models that generate.

    Raises UsageError for a model that can do nothing with questions, SparsifyError for one that lacks what its task
    needs.
    """
    if loaded.base.task not in TASKS:
        raise UsageError(f"{loaded.base.id} cannot be evaluated on questions: there is no task for {loaded.base.task}")
    return TASKS[loaded.base.task](loaded, questions, batch_size=batch_size, max_new_tokens=max_new_tokens)
