"""Models that mark the answer in the passage: a start and an end score for every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...patcher.binding.loading import LoadedModel
from ...patcher.meter import Meter
from ..items import ItemSet
from ..spans import Window, WindowEncoder, answer_span, span_kl, span_logits
from .answers import AnswerTask
from .base import Answer, TaskOptions, pack, unpack


class Extractive(AnswerTask):
    """The best span over all windows of a question; the KL divergence is the mean over them."""

    name = "extractive"
    kl_unit = "nats per question"

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        super().__init__(loaded, items, options)
        self.encoder = WindowEncoder.for_model(loaded.model, loaded.tokenizer)
        if loaded.model.config.is_encoder_decoder:
            # The decoder reads the window again, and its cross-attention is not told which of its rows are padding.
            self.batch_size = 1
        self.style = f"question and passage, windows of {self.encoder.max_length} tokens, stride {self.encoder.stride}"

    def encode(self, item: Any) -> list[int] | None:
        return [token for window in self.encoder.windows(item) for token in window.inputs["input_ids"]] or None

    def first_input(self, item: Any) -> str:
        window = self.encoder.windows(item)[0]
        text: str = self.tokenizer.decode(window.inputs["input_ids"])
        return text

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        windows = [self.encoder.windows(item) for item in batch]
        logits = self._logits([window for several in windows for window in several])
        answers, done = [], 0
        for item, own in zip(batch, windows, strict=True):
            scores = logits[done : done + len(own)]
            done += len(own)
            text, margin = answer_span(item.context, own, scores, version_2=self.version_2)
            answers.append({"answer": text, "margin": margin, "_logits": [pack(window) for window in scores]})
        return answers

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        distances = []
        for item, before, after in zip(batch, dense, patched, strict=True):
            windows = self.encoder.windows(item)
            pairs = zip(_unpacked(before), _unpacked(after), windows, strict=True)
            distances.append({"kl": sum(span_kl(p, q, window) for p, q, window in pairs) / len(windows)})
        return distances

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        """Every window of the question."""
        return [self.encoder.batch([window]) for window in self.encoder.windows(item)]

    def _logits(self, windows: list[Window]) -> list[Tensor]:
        """Start and end scores of each window, [2, its length], in batches of batch_size, the longest first."""
        order = sorted(range(len(windows)), key=lambda index: len(windows[index]), reverse=True)
        found: dict[int, Tensor] = {}
        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            logits = span_logits(self.model, self.encoder.batch([windows[index] for index in chosen]))
            found |= {index: logits[row, :, : len(windows[index])] for row, index in enumerate(chosen)}
        return [found[index] for index in range(len(windows))]


def _unpacked(answer: Answer) -> list[Tensor]:
    """[2, n] for each window."""
    return [unpack(window, 2, -1) for window in answer["_logits"]]
