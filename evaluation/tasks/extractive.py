"""Models that mark the answer in the passage: a start and an end score for every token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...patcher.binding.loading import LoadedModel
from ..questions import Question, QuestionSet
from ..spans import Window, WindowEncoder, answer_span, span_kl, span_logits
from .answers import AnswerTask
from .base import ARMS, Arms, Prediction


class Extractive(AnswerTask):
    """The best span over all windows of a question; the KL divergence is the mean over them."""

    name = "extractive"
    kl_unit = "nats per question"

    def __init__(self, loaded: LoadedModel, questions: QuestionSet, *, batch_size: int, max_new_tokens: int) -> None:
        super().__init__(loaded, questions, batch_size=batch_size, max_new_tokens=max_new_tokens)
        self.encoder = WindowEncoder.for_model(loaded.model, loaded.tokenizer)
        if loaded.model.config.is_encoder_decoder:
            # The decoder reads the window again, and its cross-attention is not told which of its rows are padding.
            self.batch_size = 1
        self.style = f"question and passage, windows of {self.encoder.max_length} tokens, stride {self.encoder.stride}"

    def tokens(self, question: Question) -> int | None:
        return sum(map(len, self.encoder.windows(question))) or None

    def first_input(self, question: Question) -> str:
        window = self.encoder.windows(question)[0]
        text: str = self.tokenizer.decode(window.inputs["input_ids"])
        return text

    def answer(self, batch: Sequence[Question], arms: Arms) -> list[Prediction]:
        windows = [self.encoder.windows(question) for question in batch]
        flat = [window for several in windows for window in several]
        logits = arms.timed(lambda meter: self._logits(flat))
        predictions, done = [], 0
        for question, own in zip(batch, windows, strict=True):
            scores = {arm: logits[arm][done : done + len(own)] for arm in ARMS}
            done += len(own)
            predictions.append(self._prediction(question, own, scores))
        return predictions

    def calibration_inputs(self, question: Question) -> list[dict[str, Tensor]]:
        """Every window of the question."""
        return [self.encoder.batch([window]) for window in self.encoder.windows(question)]

    def _prediction(self, question: Question, windows: list[Window], scores: dict[str, list[Tensor]]) -> Prediction:
        version_2 = self.questions.version_2
        answers = {arm: answer_span(question.context, windows, scores[arm], version_2=version_2) for arm in ARMS}
        pairs = zip(scores["dense"], scores["patched"], windows, strict=True)
        kl = sum(span_kl(dense, patched, window) for dense, patched, window in pairs) / len(windows)
        return self.prediction(question, sum(map(len, windows)), answers, kl)

    def _logits(self, windows: list[Window]) -> list[Tensor]:
        """Start and end scores of each window, [2, its length], in batches of batch_size, the longest first."""
        order = sorted(range(len(windows)), key=lambda index: len(windows[index]), reverse=True)
        found: dict[int, Tensor] = {}
        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            logits = span_logits(self.model, self.encoder.batch([windows[index] for index in chosen]))
            found |= {index: logits[row, :, : len(windows[index])] for row, index in enumerate(chosen)}
        return [found[index] for index in range(len(windows))]
