"""Encoders: find a question's own passage among all passages of the set, by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import DataError
from ...patcher.binding.loading import LoadedModel
from ...patcher.binding.modules import input_device
from ...patcher.meter import Meter
from ..inputs import accepted_inputs, text_limit
from ..items import ItemSet
from ..pooling import embed, pooling_mode
from .base import ARMS, Answer, Record, Task, TaskOptions, pack, unpack

LABEL_WORDS = 8  # how much of a passage stands for it in predictions.jsonl


class Retrieval(Task):
    """Ranks of the questions' own passages; each arm ranks with its own embeddings of both sides.

    MRR, the mean of 1/rank, is in percent.
    """

    name = "retrieval"
    metrics: ClassVar[dict[str, str]] = {"accuracy": "top-1", "reciprocal_rank": "MRR"}
    right = "accuracy"
    kl_unit = None

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        super().__init__(loaded, items, options)
        self.pooling = pooling_mode(loaded)
        self.style = f"question and passage apart, {self.pooling} pooling"
        self.limit = text_limit(loaded.model, loaded.tokenizer)
        self.names = accepted_inputs(loaded.model, loaded.tokenizer)
        titles: dict[str, str] = {}
        for item in items.items:
            titles.setdefault(item.context, item.title)
        self._places = {passage: place for place, passage in enumerate(titles)}
        self._labels = [_label(place, title, passage) for place, (passage, title) in enumerate(titles.items())]

    def check(self) -> None:
        super().check()
        if len(self._places) < 2:
            raise DataError(
                f"{self.items.name} has a single passage for its {len(self.items)} questions, so there is "
                "nothing to rank: an encoder needs questions on two passages or more"
            )

    def encode(self, item: Any) -> list[int]:
        return [token for text in (item.question, item.context) for token in self._ids(text)]

    def first_input(self, item: Any) -> str:
        return "\n".join(self.tokenizer.decode(self._ids(text)) for text in (item.question, item.context))

    def order(self, items: Sequence[Any]) -> list[Any]:
        """Questions on one passage stand together, so that a batch embeds it once; long passages first."""
        lengths = {passage: len(self._ids(passage)) for passage in {item.context for item in items}}
        return sorted(items, key=lambda item: (-lengths[item.context], self._places[item.context]))

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        """The embeddings of questions and passages; the answer follows once all passages are known."""
        passages = list(dict.fromkeys(item.context for item in batch))
        embedded = dict(zip(passages, self._embed(passages), strict=True))
        questions = self._embed([item.question for item in batch])
        return [
            {"_question": pack(questions[row]), "_passage": pack(embedded[item.context])}
            for row, item in enumerate(batch)
        ]

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        """Cosines between the arms' embeddings."""
        return [
            {f"{name}_cosine": float(unpack(p[f"_{name}"]) @ unpack(q[f"_{name}"])) for name in ("question", "passage")}
            for p, q in zip(dense, patched, strict=True)
        ]

    def finish(self, records: list[Record]) -> None:
        """Ranks, with the first embedding that each arm made of a passage."""
        if not records or "rank" in records[0].dense:
            return
        for arm in ARMS:
            passages: dict[str, Tensor] = {}
            for record in records:
                passages.setdefault(record.item.context, unpack(record.answer(arm)["_passage"]))
            places = {passage: place for place, passage in enumerate(passages)}
            labels = [self._labels[self._places[passage]] for passage in passages]
            stacked = torch.stack(list(passages.values()))
            for record in records:
                order = ranking(unpack(record.answer(arm)["_question"]), stacked)
                rank = order.tolist().index(places[record.item.context]) + 1
                record.answer(arm).update(answer=labels[int(order[0])], rank=rank)

    def score(self, record: Record, arm: str) -> dict[str, float]:
        rank = record.answer(arm)["rank"]
        return {"accuracy": float(rank == 1), "reciprocal_rank": 1 / rank}

    def gold(self, item: Any) -> list[str]:
        return [self._labels[self._places[item.context]]]

    def chance(self, items: Sequence[Any]) -> float:
        return 1 / len(self._places)

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        """The passage, and the question."""
        return [self._batch([text]) for text in (item.context, item.question)]

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
        return {name: encoded[name].to(input_device(self.model)) for name in self.names}

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """float32 [texts, d] on the CPU, each of length 1."""
        inputs = self._batch(texts)
        hidden = self.model(**inputs, use_cache=False).last_hidden_state
        return embed(hidden, inputs["attention_mask"], self.pooling).cpu()


def ranking(question: Tensor, passages: Tensor) -> Tensor:
    """The places of the passages from the most to the least similar, int64 [p]; among equals the first is first.

    question: [d], passages: [p, d], each of length 1.
    """
    return torch.argsort(passages @ question, descending=True, stable=True)


def _label(place: int, title: str, passage: str) -> str:
    """A passage by its number, title and first words; the number, as two may begin alike."""
    words = passage.split()
    text = " ".join(words[:LABEL_WORDS]) + (" ..." if len(words) > LABEL_WORDS else "")
    return ": ".join(part for part in (f"passage {place + 1}", title, text) if part)
