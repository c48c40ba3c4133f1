"""Encoders: find a question's own passage among all passages of the set, by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import DataError
from ...patcher.binding.loading import LoadedModel
from ..inputs import accepted_inputs, text_limit
from ..pooling import embed, pooling_mode
from ..questions import Question, QuestionSet
from .base import ARMS, Arms, Prediction, Task

LABEL_WORDS = 8  # how much of a passage stands for it in predictions.jsonl


@dataclass(frozen=True)
class _Asked:
    """A question with its embedding by each arm, float32 [d]."""

    question: Question
    tokens: int
    embeddings: dict[str, Tensor]


class Retrieval(Task):
    """Ranks of the questions' own passages; each arm ranks with its own embeddings of both sides.

    A passage that several questions have is there, and is embedded, once. MRR, the mean of 1/rank, is in percent.
    """

    name = "retrieval"
    metrics: ClassVar[dict[str, str]] = {"accuracy": "top-1", "reciprocal_rank": "MRR"}
    kl_unit = None

    def __init__(self, loaded: LoadedModel, questions: QuestionSet, *, batch_size: int, max_new_tokens: int) -> None:
        super().__init__(loaded, questions, batch_size=batch_size, max_new_tokens=max_new_tokens)
        self.pooling = pooling_mode(loaded)
        self.style = f"question and passage apart, {self.pooling} pooling"
        self.limit = text_limit(loaded.model, loaded.tokenizer)
        self.names = accepted_inputs(loaded.model, loaded.tokenizer)
        titles: dict[str, str] = {}
        for question in questions.questions:
            titles.setdefault(question.context, question.title)
        self._places = {passage: place for place, passage in enumerate(titles)}
        self._labels = [_label(place, title, passage) for place, (passage, title) in enumerate(titles.items())]
        self._embedded: dict[str, dict[str, Tensor]] = {}
        self._asked: list[_Asked] = []

    def check(self) -> None:
        if len(self._places) < 2:
            raise DataError(
                f"{self.questions.name} has a single passage for its {len(self.questions)} questions, so there is "
                "nothing to rank: an encoder needs questions on two passages or more"
            )

    def tokens(self, question: Question) -> int:
        return sum(len(self._ids(text)) for text in (question.question, question.context))

    def first_input(self, question: Question) -> str:
        return "\n".join(self.tokenizer.decode(self._ids(text)) for text in (question.question, question.context))

    def answer(self, batch: Sequence[Question], arms: Arms) -> list[Prediction]:
        """Embeds the questions, and their passages if they are new; ranks follow once all passages are known."""
        passages = [text for text in dict.fromkeys(q.context for q in batch) if text not in self._embedded]
        found = arms.timed(lambda meter: [self._embed(texts) for texts in (passages, [q.question for q in batch])])
        for row, passage in enumerate(passages):
            self._embedded[passage] = {arm: found[arm][0][row] for arm in ARMS}
        self._asked += [
            _Asked(question, self.tokens(question), {arm: found[arm][1][row] for arm in ARMS})
            for row, question in enumerate(batch)
        ]
        return []

    def finish(self) -> list[Prediction]:
        passages = {arm: torch.stack([self._embedded[passage][arm] for passage in self._places]) for arm in ARMS}
        return [self._prediction(asked, passages) for asked in self._asked]

    def calibration_inputs(self, question: Question) -> list[dict[str, Tensor]]:
        """The passage, and the question."""
        return [self._batch([text]) for text in (question.context, question.question)]

    def _prediction(self, asked: _Asked, passages: dict[str, Tensor]) -> Prediction:
        own = self._places[asked.question.context]
        orders = {arm: ranking(asked.embeddings[arm], passages[arm]) for arm in ARMS}
        ranks = {arm: orders[arm].tolist().index(own) + 1 for arm in ARMS}
        return Prediction(
            asked.question,
            gold=(self._labels[own],),
            prompt_tokens=asked.tokens,
            answers={arm: self._labels[int(orders[arm][0])] for arm in ARMS},
            scores={arm: {"accuracy": float(ranks[arm] == 1), "reciprocal_rank": 1 / ranks[arm]} for arm in ARMS},
            cosines={
                "question": _cosine(asked.embeddings),
                "passage": _cosine({arm: passages[arm][own] for arm in ARMS}),
            },
            ranks=ranks,
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=self.limit is not None, max_length=self.limit)["input_ids"]
        return ids

    def _batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        encoded = self.tokenizer(
            list(texts),
            truncation=self.limit is not None,
            max_length=self.limit,
            padding="longest",
            padding_side="right",
            return_tensors="pt",
        )
        return {name: encoded[name].to(self.model.device) for name in self.names}

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """float32 [texts, d] on the CPU, each of length 1."""
        if not texts:
            return torch.empty(0)
        inputs = self._batch(texts)
        hidden = self.model(**inputs, use_cache=False).last_hidden_state
        return embed(hidden, inputs["attention_mask"], self.pooling).cpu()


def ranking(question: Tensor, passages: Tensor) -> Tensor:
    """The places of the passages from the most to the least similar, int64 [p]; among equals the first is first.

    question: [d], passages: [p, d], each of length 1.
    """
    return torch.argsort(passages @ question, descending=True, stable=True)


def _cosine(embeddings: dict[str, Tensor]) -> float:
    """Between the arms, of embeddings of length 1."""
    return float(embeddings["dense"] @ embeddings["patched"])


def _label(place: int, title: str, passage: str) -> str:
    """A passage by its number, title and first words; the number, as two may begin alike."""
    words = passage.split()
    text = " ".join(words[:LABEL_WORDS]) + (" ..." if len(words) > LABEL_WORDS else "")
    return ": ".join(part for part in (f"passage {place + 1}", title, text) if part)
