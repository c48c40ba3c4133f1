"""Models that write the answer: decoders and encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...patcher.binding.loading import LoadedModel
from ...patcher.binding.modules import input_device
from ...patcher.meter import Meter
from ..generation import (
    TopMargins,
    answer_log_probs,
    answer_mask,
    decoder_start,
    generate_greedy,
    kl_divergence,
    padded_answers,
)
from ..inputs import PromptEncoder, check_answer_fits, position_limit, prompt_fits
from ..items import ItemSet
from .answers import AnswerTask
from .base import DEFAULT_NEW_TOKENS, Answer, TaskOptions


class Generative(AnswerTask):
    """Greedy answers to prompts; the KL divergence runs along the dense answer.

    Output distributions are too large to keep, so comparing takes one pass of each model along the dense answer, also
    where that answer was known already.
    """

    name = "generative"
    kl_unit = "nats per answer token"
    prompts = True

    def __init__(self, loaded: LoadedModel, items: ItemSet, options: TaskOptions) -> None:
        super().__init__(loaded, items, options)
        self.encoder = PromptEncoder.for_model(
            loaded, items.dataset, options.template, options.shots, options.max_input_tokens
        )
        self.style = self.encoder.style
        self.max_new_tokens: int = options.max_new_tokens or DEFAULT_NEW_TOKENS

    def check(self) -> None:
        check_answer_fits(self.model, self.max_new_tokens)

    def encode(self, item: Any) -> list[int] | None:
        prompt = self.encoder.token_ids(item)
        return prompt if prompt_fits(self.model, len(prompt), self.max_new_tokens) else None

    def first_input(self, item: Any) -> str:
        return self.encoder.prompt(item).text

    def predict(self, batch: Sequence[Any], meter: Meter | None = None) -> list[Answer]:
        margins = TopMargins()
        pad = self.tokenizer.pad_token_id
        generated = generate_greedy(
            self.model, self._prompts(batch), self.max_new_tokens, pad, meter=meter, margins=margins
        )
        mask = answer_mask(self.model, generated)
        tokens = [row[kept].tolist() for row, kept in zip(generated, mask, strict=True)]
        return [
            {"answer": answer, "answer_tokens": own, "margin": margin}
            for answer, own, margin in zip(self.encoder.answers(tokens), tokens, margins.smallest(mask), strict=True)
        ]

    def observe(self, batch: Sequence[Any], dense: Sequence[Answer]) -> Tensor:
        """log p before every token of the dense answers, float32 [B, m, vocabulary]."""
        answers, mask = padded_answers([answer["answer_tokens"] for answer in dense], input_device(self.model))
        return answer_log_probs(self.model, self._prompts(batch), answers, mask)

    def compare(
        self, batch: Sequence[Any], dense: Sequence[Answer], patched: Sequence[Answer], observed: tuple[Any, Any]
    ) -> list[dict[str, Any]]:
        kl = kl_divergence(*observed)
        return [
            {"kl": float(kl[row, : len(answer["answer_tokens"])].mean()), "tokens": len(answer["answer_tokens"])}
            for row, answer in enumerate(dense)
        ]

    def calibration_inputs(self, item: Any) -> list[dict[str, Tensor]]:
        """The prompt with its first gold answer, as the model would see it while it writes that answer."""
        sample = self.encoder.answered(item, decoder_start(self.model))
        limit = position_limit(self.model)
        return [sample] if limit is None or max(tokens.shape[1] for tokens in sample.values()) <= limit else []

    def _prompts(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        return self.encoder.batch([self.input_ids(item) or [] for item in batch])
