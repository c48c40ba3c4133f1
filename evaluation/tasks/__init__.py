"""What the evaluation has a model do with items: one file for each task."""

from __future__ import annotations

from ...errors import UsageError
from ...patcher.binding.loading import LoadedModel
from ..datasets.base import ANSWERS, CHOICES, ENCODED, LABELS, SPEECH, TEXT
from ..items import ItemSet
from .asr_ctc import CTC
from .asr_generate import GeneratedTranscription
from .base import Task, TaskOptions
from .classification import Classification
from .extractive import Extractive
from .fidelity import Fidelity
from .generative import Generative
from .multiple_choice import MultipleChoice
from .retrieval import Retrieval

# (a data set's task, a model's task: see patcher.binding.tasks.task_of) -> what is done.
TASKS: dict[tuple[str, str], type[Task]] = {
    (ANSWERS, "causal-lm"): Generative,
    (ANSWERS, "seq2seq-lm"): Generative,
    (ANSWERS, "question-answering"): Extractive,
    (ANSWERS, "encoder"): Retrieval,
    (ENCODED, "causal-lm"): Generative,
    (ENCODED, "seq2seq-lm"): Generative,
    (CHOICES, "causal-lm"): MultipleChoice,
    (CHOICES, "seq2seq-lm"): MultipleChoice,
    (LABELS, "causal-lm"): MultipleChoice,
    (LABELS, "seq2seq-lm"): MultipleChoice,
    (LABELS, "text-classification"): Classification,
    (TEXT, "causal-lm"): Fidelity,
    (TEXT, "seq2seq-lm"): Fidelity,
    (SPEECH, "speech-ctc"): CTC,
    (SPEECH, "speech-seq2seq"): GeneratedTranscription,
}


def task_for(loaded: LoadedModel, items: ItemSet, options: TaskOptions | None = None) -> Task:
    """The task of a model on some items.

    Raises UsageError for a model that can do nothing with them, SparsifyError for one that lacks what its task needs.
    """
    kind, model_task = items.dataset.task, loaded.base.task
    if (kind, model_task) not in TASKS:
        able = " or ".join(sorted(model for data, model in TASKS if data == kind))
        raise UsageError(
            f"{loaded.base.id} ({model_task}) cannot be evaluated on {items.name}: {kind} need a model for {able}"
        )
    return TASKS[kind, model_task](loaded, items, options or TaskOptions())
