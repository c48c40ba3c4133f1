"""Models that write the answer: decoders and encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...patcher.binding.loading import LoadedModel
from ..generation import answer_log_probs, answer_mask, decoder_start, generate_greedy, kl_divergence
from ..inputs import PromptEncoder, check_answer_fits, position_limit, prompt_fits
from ..questions import Question, QuestionSet
from .answers import AnswerTask
from .base import ARMS, Arms, Prediction


class Generative(AnswerTask):
    """Greedy answers to prompts; the KL divergence runs along the dense answer."""

    name = "generative"
    kl_unit = "nats per answer token"

    def __init__(self, loaded: LoadedModel, questions: QuestionSet, *, batch_size: int, max_new_tokens: int) -> None:
        super().__init__(loaded, questions, batch_size=batch_size, max_new_tokens=max_new_tokens)
        base = loaded.base
        self.encoder = PromptEncoder.for_model(loaded.model, loaded.tokenizer, base.task, base.id, questions.version_2)
        self.style = self.encoder.style
        self.max_new_tokens: int = max_new_tokens
        self._prompts: dict[str, list[int]] = {}

    def check(self) -> None:
        check_answer_fits(self.model, self.max_new_tokens)

    def tokens(self, question: Question) -> int | None:
        length = len(self._prompt(question))
        return length if prompt_fits(self.model, length, self.max_new_tokens) else None

    def first_input(self, question: Question) -> str:
        return self.encoder.text(question)

    def answer(self, batch: Sequence[Question], arms: Arms) -> list[Prediction]:
        model, pad = self.model, self.tokenizer.pad_token_id
        inputs = self.encoder.batch([self._prompt(question) for question in batch])
        generated = arms.timed(lambda meter: generate_greedy(model, inputs, self.max_new_tokens, pad, meter=meter))
        log_probs = arms.untimed(lambda: answer_log_probs(model, inputs, generated["dense"]))
        kl = kl_divergence(log_probs["dense"], log_probs["patched"])
        mask = answer_mask(model, generated["dense"])
        texts = {arm: self.encoder.answers(generated[arm]) for arm in ARMS}
        return [
            self.prediction(
                question,
                len(self._prompt(question)),
                {arm: texts[arm][row] for arm in ARMS},
                kl=float(kl[row][mask[row]].mean()),
                answer_tokens=int(mask[row].sum()),
            )
            for row, question in enumerate(batch)
        ]

    def calibration_inputs(self, question: Question) -> list[dict[str, Tensor]]:
        """The prompt with its first gold answer, as the model would see it while it writes that answer."""
        sample = self.encoder.answered(question, decoder_start(self.model))
        limit = position_limit(self.model)
        return [sample] if limit is None or max(tokens.shape[1] for tokens in sample.values()) <= limit else []

    def _prompt(self, question: Question) -> list[int]:
        if question.id not in self._prompts:
            self._prompts[question.id] = self.encoder.token_ids(question)
        return self._prompts[question.id]
