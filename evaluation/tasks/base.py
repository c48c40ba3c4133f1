"""What all tasks of the evaluation share: predictions, the two arms, and the class that a task derives from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ...patcher.binding.loading import LoadedModel
from ...patcher.binding.patching import Patch
from ...patcher.meter import Meter
from ..questions import Question, QuestionSet

ARMS = ("dense", "patched")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Prediction:
    """One question under both arms.

    scores: per arm every metric of the task, from 0 to 1. kl: of patched from dense, in the task's kl_unit.
    answer_tokens: the generated tokens that kl is the mean over. cosines: between the two arms' embeddings of the
    "question" and of its "passage". ranks: per arm the place of that passage, from 1. None: the task has no such thing.
    """

    question: Question
    gold: tuple[str, ...]
    prompt_tokens: int
    answers: dict[str, str]
    scores: dict[str, dict[str, float]]
    kl: float | None = None
    answer_tokens: int | None = None
    cosines: dict[str, float] | None = None
    ranks: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """A line of predictions.jsonl."""
        question, ranks = self.question, self.ranks
        return {
            "id": question.id,
            "kind": question.kind,
            "question": question.question,
            "gold": list(self.gold),
            "prompt_tokens": self.prompt_tokens,
            **{
                arm: {"answer": self.answers[arm], **({"rank": ranks[arm]} if ranks else {}), **self.scores[arm]}
                for arm in ARMS
            },
            "same_answer": self.answers["dense"] == self.answers["patched"],
            "kl": self.kl,
            "answer_tokens": self.answer_tokens,
            **({} if self.cosines is None else {"cosines": self.cosines}),
        }


class Arms:
    """The dense and the patched model, one after the other, on the same inputs.

    seconds: what each arm took. meter: what the patched one kept; its own time is part of the patched arm's.
    """

    def __init__(self, patch: Patch, meter: Meter, seconds: dict[str, float]) -> None:
        self.patch = patch
        self.meter = meter
        self.seconds = seconds
        self._turns = 0

    def timed(self, run: Callable[[Meter | None], Result]) -> dict[str, Result]:
        """`run` under each arm, timed; it gets the meter of the patched arm. To be called once per batch.

        `run` has to return when the work is done, not when it is queued: on a GPU, with its results on the CPU.
        """
        # The arms take turns at going first, so that neither always finds the caches warm.
        order = ARMS if self._turns % 2 == 0 else tuple(reversed(ARMS))
        self._turns += 1
        results = {}
        for arm in order:
            meter = self.meter if arm == "patched" else None
            with self.patch.paused() if meter is None else self.patch.metered(meter):
                start = time.perf_counter()
                results[arm] = run(meter)
                self.seconds[arm] += time.perf_counter() - start
        return results

    def untimed(self, run: Callable[[], Result]) -> dict[str, Result]:
        """`run` under each arm, neither timed nor metered."""
        results = {}
        for arm in ARMS:
            with self.patch.paused() if arm == "dense" else nullcontext():
                results[arm] = run()
        return results


class Task(ABC):
    """What a kind of model does with questions. An object serves one evaluation or one calibration.

    name: in results.json. metrics: key in results.json -> short name in tables; "right" and "wrong" go by the first.
    kl_unit: what Prediction.kl is counted in. style: how inputs are made, in words.
    max_new_tokens: the longest answer, None for tasks that do not generate.
    """

    name: ClassVar[str]
    metrics: ClassVar[dict[str, str]]
    kl_unit: ClassVar[str | None]
    style: str
    max_new_tokens: int | None = None

    def __init__(self, loaded: LoadedModel, questions: QuestionSet, *, batch_size: int, max_new_tokens: int) -> None:
        """batch_size: the most sequences that go through the model at once. Raises what the task cannot work with."""
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.questions = questions
        self.batch_size = batch_size

    def check(self) -> None:  # noqa: B027
        """UsageError or DataError if the options or the questions cannot be evaluated; calibration does not ask."""

    @abstractmethod
    def tokens(self, question: Question) -> int | None:
        """How many tokens the model reads for a question; None if the question does not fit the model's positions."""

    @abstractmethod
    def first_input(self, question: Question) -> str:
        """A question's complete input, as text."""

    @abstractmethod
    def answer(self, batch: Sequence[Question], arms: Arms) -> list[Prediction]:
        """The predictions for at most batch_size questions that fit; a task may keep them back for `finish`."""

    def finish(self) -> list[Prediction]:
        """The predictions that had to wait until every question was seen."""
        return []

    @abstractmethod
    def calibration_inputs(self, question: Question) -> list[dict[str, Tensor]]:
        """Inputs to calibrate on, one sequence each, without padding; none if the question does not fit."""

    def score(self, predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Per arm every metric over some predictions (one or more), in percent."""
        count = len(predictions)
        return {
            arm: {key: 100 * sum(p.scores[arm][key] for p in predictions) / count for key in self.metrics}
            for arm in ARMS
        }
