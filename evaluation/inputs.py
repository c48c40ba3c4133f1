"""Questions -> tensors: prompts in padded batches, and prompts with a known answer (for calibration)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .prompts import build_prompt, choose_style, extract_answer
from .questions import Question

UNANSWERABLE = "unanswerable"
# Tokenizers that know no limit say a far larger number.
NO_LIMIT = 10**9


def position_limit(model: Any) -> int | None:
    """The most tokens that one side of a model has positions for; None where positions are relative."""
    if model.config.is_encoder_decoder and hasattr(model.config, "relative_attention_num_buckets"):
        return None
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding token's number, and have that many fewer.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return getattr(model.config, "max_position_embeddings", None)


def text_limit(model: Any, tokenizer: Any) -> int | None:
    """The most tokens of a text that a model reads: its positions, or fewer if its tokenizer says so; None for any."""
    limits = [limit for limit in (position_limit(model), tokenizer.model_max_length) if limit and limit < NO_LIMIT]
    return min(limits, default=None)


def accepted_inputs(model: Any, tokenizer: Any) -> tuple[str, ...]:
    """The names of what a tokenizer makes for texts that a model also takes."""
    taken = inspect.signature(model.forward).parameters
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in taken]
    if "token_type_ids" not in tokenizer.model_input_names or getattr(model.config, "type_vocab_size", 2) < 2:
        names = [name for name in names if name != "token_type_ids"]
    return tuple(names)


def prompt_fits(model: Any, prompt_tokens: int, max_new_tokens: int) -> bool:
    """Whether a model has positions for a prompt and, where the answer follows it in one sequence, for the answer."""
    limit = position_limit(model)
    room = 0 if model.config.is_encoder_decoder else max_new_tokens
    return limit is None or prompt_tokens + room <= limit


def check_answer_fits(model: Any, max_new_tokens: int) -> None:
    """UsageError for a token limit that no prompt could leave room for."""
    limit = position_limit(model)
    if limit is not None and max_new_tokens >= limit:
        raise UsageError(f"--max-new-tokens {max_new_tokens} is too many: the model has {limit} positions")


@dataclass(frozen=True)
class PromptEncoder:
    """Turns questions into a model's inputs. style: see prompts.STYLES. version_2: some questions have no answer."""

    tokenizer: Any
    task: str
    style: str
    version_2: bool
    device: torch.device

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any, task: str, model_name: str, version_2: bool) -> PromptEncoder:
        """The encoder with the prompt style that suits a model. UsageError for a task that generates no text."""
        return cls(tokenizer, task, choose_style(task, tokenizer, model_name), version_2, model.device)

    def text(self, question: Question) -> str:
        """The complete prompt."""
        return build_prompt(question, self.style, self.tokenizer, version_2=self.version_2).text

    def token_ids(self, question: Question) -> list[int]:
        """The prompt's tokens, without padding."""
        prompt = build_prompt(question, self.style, self.tokenizer, version_2=self.version_2)
        ids: list[int] = self.tokenizer(prompt.text, add_special_tokens=prompt.add_special_tokens)["input_ids"]
        return ids

    def batch(self, prompts: Sequence[list[int]]) -> dict[str, Tensor]:
        """input_ids and attention_mask, int64 [B, n], padded on the tokenizer's side."""
        padded = self.tokenizer.pad({"input_ids": list(prompts)}, padding=True, return_tensors="pt")
        return {name: padded[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def answered(self, question: Question, decoder_start: int | None) -> dict[str, Tensor]:
        """One prompt followed by its first gold answer, as the model would see it while it writes that answer.

        decoder_start: the first decoder token of an encoder-decoder model.
        """
        prompt = self.token_ids(question)
        answer = question.answers[0] if question.answers else UNANSWERABLE
        if self.task == "seq2seq-lm":
            target = self.tokenizer(text_target=answer)["input_ids"]
            inputs = self.batch([prompt])
            start = [] if decoder_start is None else [decoder_start]
            return inputs | {"decoder_input_ids": torch.tensor([start + target[:-1]], device=self.device)}
        lead = "" if prompt and self.style == "chat-template" else " "
        ids = prompt + self.tokenizer(lead + answer, add_special_tokens=False)["input_ids"]
        return self.batch([ids])

    def answers(self, generated: Tensor) -> list[str]:
        """The answers in generated tokens [B, m] (prompt removed)."""
        texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [extract_answer(text, self.style, version_2=self.version_2) for text in texts]
