"""The evaluation: the unpatched and the patched model on the same questions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import DataError, require_at_least_one
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.patching import Patch, apply_plan, remove_patch
from ..patcher.meter import Meter
from ..patcher.methods import AttentionMethod
from ..patcher.thresholds import ModuleThresholds
from .generation import answer_log_probs, answer_mask, generate_greedy, kl_divergence
from .inputs import PromptEncoder, check_answer_fits, prompt_fits
from .metrics.answer_match import exact_match, f1
from .questions import Question, QuestionSet

ARMS = ("dense", "patched")

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Prediction:
    """One question under both arms. kl: mean over the tokens of the dense answer, in nats."""

    question: Question
    prompt_tokens: int
    answers: dict[str, str]
    exact_match: dict[str, float]
    f1: dict[str, float]
    kl: float
    answer_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """A line of predictions.jsonl."""
        question = self.question
        return {
            "id": question.id,
            "kind": question.kind,
            "question": question.question,
            "gold": list(question.answers),
            "prompt_tokens": self.prompt_tokens,
            **{
                arm: {"answer": self.answers[arm], "exact_match": self.exact_match[arm], "f1": self.f1[arm]}
                for arm in ARMS
            },
            "same_answer": self.answers["dense"] == self.answers["patched"],
            "kl": self.kl,
            "answer_tokens": self.answer_tokens,
        }


@dataclass
class Evaluation:
    """Everything that was measured. left_out: questions whose prompt is longer than the model's positions."""

    questions: QuestionSet
    style: str
    first_prompt: str
    batch_size: int
    max_new_tokens: int
    predictions: list[Prediction] = field(default_factory=list)
    left_out: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ARMS, 0.0))
    meter: Meter = field(default_factory=Meter)


def evaluate(
    loaded: LoadedModel,
    plan: Mapping[str, AttentionMethod],
    questions: QuestionSet,
    *,
    thresholds: Mapping[str, ModuleThresholds] | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 32,
    advance: Advance | None = None,
) -> Evaluation:
    """Answers every question with the dense model and with the patched one, batch by batch in turn.

    advance: called with the number of questions done. The model must not be patched, and is left dense.
    Raises UsageError for a batch size or token limit below 1 and for models that do not generate, DataError if no
    question fits the model.
    """
    require_at_least_one(batch_size=batch_size, max_new_tokens=max_new_tokens)
    check_answer_fits(loaded.model, max_new_tokens)
    encoder = PromptEncoder.for_model(
        loaded.model, loaded.tokenizer, loaded.base.task, loaded.base.id, questions.version_2
    )
    prompts = {question.id: encoder.token_ids(question) for question in questions.questions}
    fitting = [q for q in questions.questions if prompt_fits(loaded.model, len(prompts[q.id]), max_new_tokens)]
    if not fitting:
        raise DataError(f"no question of {questions.name} fits the model's positions")
    result = Evaluation(questions, encoder.style, encoder.text(questions.questions[0]), batch_size, max_new_tokens)
    result.left_out = len(questions) - len(fitting)
    if advance is not None and result.left_out:
        advance(result.left_out)
    patch = apply_plan(loaded.model, plan, thresholds)
    try:
        with torch.inference_mode():
            for index, batch in enumerate(_batches(fitting, prompts, batch_size)):
                result.predictions += _answer(loaded, patch, encoder, batch, prompts, result, index)
                if advance is not None:
                    advance(len(batch))
    finally:
        remove_patch(loaded.model)
    order = {question.id: index for index, question in enumerate(questions.questions)}
    result.predictions.sort(key=lambda prediction: order[prediction.question.id])
    return result


def _batches(questions: Sequence[Question], prompts: dict[str, list[int]], batch_size: int) -> Iterator[list[Question]]:
    """Longest prompts first: little padding, and what does not fit in memory fails at once."""
    ordered = sorted(questions, key=lambda question: len(prompts[question.id]), reverse=True)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def _answer(
    loaded: LoadedModel,
    patch: Patch,
    encoder: PromptEncoder,
    batch: list[Question],
    prompts: dict[str, list[int]],
    result: Evaluation,
    index: int,
) -> list[Prediction]:
    inputs = encoder.batch([prompts[question.id] for question in batch])
    generated = {}
    # The arms take turns at going first, so that neither always finds the caches warm.
    for arm in ARMS if index % 2 == 0 else reversed(ARMS):
        generated[arm] = _generate(loaded, patch, inputs, result, arm)
    log_probs = {}
    for arm in ARMS:
        with patch.paused() if arm == "dense" else nullcontext():
            log_probs[arm] = answer_log_probs(loaded.model, inputs, generated["dense"])
    kl = kl_divergence(log_probs["dense"], log_probs["patched"])
    mask = answer_mask(loaded.model, generated["dense"])
    texts = {arm: encoder.answers(generated[arm]) for arm in ARMS}
    return [
        _prediction(
            question,
            len(prompts[question.id]),
            {arm: texts[arm][row] for arm in ARMS},
            kl[row][mask[row]],
            encoder.version_2,
        )
        for row, question in enumerate(batch)
    ]


def _generate(
    loaded: LoadedModel, patch: Patch, inputs: dict[str, torch.Tensor], result: Evaluation, arm: str
) -> torch.Tensor:
    """One arm's greedy tokens; its time counts, the meter's does too (it is part of the torch path)."""
    meter = result.meter if arm == "patched" else None
    with patch.paused() if meter is None else patch.metered(meter):
        start = time.perf_counter()
        tokens = generate_greedy(
            loaded.model, inputs, result.max_new_tokens, loaded.tokenizer.pad_token_id, meter=meter
        )
        result.seconds[arm] += time.perf_counter() - start
    return tokens


def _prediction(
    question: Question, prompt_tokens: int, answers: dict[str, str], kl: torch.Tensor, version_2: bool
) -> Prediction:
    return Prediction(
        question=question,
        prompt_tokens=prompt_tokens,
        answers=answers,
        exact_match={a: exact_match(answers[a], question.answers, version_2=version_2) for a in ARMS},
        f1={a: f1(answers[a], question.answers, version_2=version_2) for a in ARMS},
        kl=float(kl.mean()),
        answer_tokens=len(kl),
    )
