"""The evaluation: the unpatched and the patched model on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..errors import DataError, require_at_least_one
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.patching import apply_plan, remove_patch
from ..patcher.meter import Meter
from ..patcher.methods import Method
from ..patcher.thresholds import ModuleThresholds
from .questions import Question, QuestionSet
from .tasks import Task, task_for
from .tasks.base import ARMS, Arms, Prediction

Advance = Callable[[int], None]


@dataclass
class Evaluation:
    """Everything that was measured. left_out: questions that are longer than the model's positions allow."""

    questions: QuestionSet
    task: Task
    first_input: str
    batch_size: int
    predictions: list[Prediction] = field(default_factory=list)
    left_out: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ARMS, 0.0))
    meter: Meter = field(default_factory=Meter)


def evaluate(
    loaded: LoadedModel,
    plan: Mapping[str, Method],
    questions: QuestionSet,
    *,
    thresholds: Mapping[str, ModuleThresholds] | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 32,
    advance: Advance | None = None,
) -> Evaluation:
    """Answers every question with the dense model and with the patched one, batch by batch in turn.

    advance: called with the number of questions done. The model must not be patched, and is left dense.
    Raises UsageError for a batch size or token limit below 1, DataError if no question fits the model, and what
    `task_for` and the task's `check` raise.
    """
    require_at_least_one(batch_size=batch_size, max_new_tokens=max_new_tokens)
    task = task_for(loaded, questions, batch_size=batch_size, max_new_tokens=max_new_tokens)
    task.check()
    lengths = {question.id: task.tokens(question) for question in questions.questions}
    fitting = {id_: length for id_, length in lengths.items() if length is not None}
    chosen = [question for question in questions.questions if question.id in fitting]
    if not chosen:
        raise DataError(f"no question of {questions.name} fits what the model can read at once")
    result = Evaluation(questions, task, task.first_input(chosen[0]), task.batch_size)
    result.left_out = len(questions) - len(chosen)
    if advance is not None and result.left_out:
        advance(result.left_out)
    patch = apply_plan(loaded.model, plan, thresholds)
    arms = Arms(patch, result.meter, result.seconds)
    try:
        with torch.inference_mode():
            for batch in _batches(chosen, fitting, batch_size):
                result.predictions += task.answer(batch, arms)
                if advance is not None:
                    advance(len(batch))
            result.predictions += task.finish()
    finally:
        remove_patch(loaded.model)
    order = {question.id: index for index, question in enumerate(questions.questions)}
    result.predictions.sort(key=lambda prediction: order[prediction.question.id])
    return result


def _batches(questions: Sequence[Question], tokens: Mapping[str, int], batch_size: int) -> Iterator[list[Question]]:
    """Longest inputs first: little padding, and what does not fit in memory fails at once."""
    ordered = sorted(questions, key=lambda question: tokens[question.id], reverse=True)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]
