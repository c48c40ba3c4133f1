"""Questions -> tensors: prompts in padded batches, and prompts with a known answer (for calibration)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import input_device
from .datasets.base import Dataset
from .items import Item, Question
from .prompts import UNIFIEDQA, Prompt, Turn, build_prompt, choose_style, extract_answer, turn_from_template
from .shots import shot_answer

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
    """Turns items into a generating model's inputs. style: see prompts.STYLES.

    template: in place of the data set's prompt. shots: examples that precede every item. max_tokens: where prompts are
    cut at their end, None for nowhere.
    """

    tokenizer: Any
    task: str
    style: str
    dataset: Dataset
    device: torch.device
    template: str | None = None
    shots: tuple[Item, ...] = ()
    max_tokens: int | None = None

    @classmethod
    def for_model(
        cls,
        loaded: LoadedModel,
        dataset: Dataset,
        template: str | None = None,
        shots: tuple[Item, ...] = (),
        max_tokens: int | None = None,
    ) -> PromptEncoder:
        """The encoder with the prompt style that suits a model. UsageError for a task that generates no text, and for
        prompts cut at the end where that is what the answer follows."""
        base = loaded.base
        style = choose_style(base.task, loaded.tokenizer, base.id)
        if max_tokens is not None and base.task != "seq2seq-lm":
            raise UsageError(
                "--max-input-tokens cuts prompts at their end, where a decoder's question stands: leave it out"
            )
        device = input_device(loaded.model)
        return cls(loaded.tokenizer, base.task, style, dataset, device, template, shots, max_tokens)

    @property
    def version_2(self) -> bool:
        """Whether the model may say that there is no answer."""
        return self.dataset.version_2

    def turn(self, item: Any) -> Turn:
        """What the model is told about one item."""
        if self.template is not None:
            return turn_from_template(self.template, item.fields())
        return self.dataset.prompt(item, self.style)

    def prompt(self, item: Any) -> Prompt:
        """The complete prompt."""
        examples = [(self.turn(shot), self._spelt(shot_answer(shot, self.dataset))) for shot in self.shots]
        return build_prompt(self.turn(item), self.style, self.tokenizer, examples)

    def token_ids(self, item: Any) -> list[int]:
        """The prompt's tokens, without padding; of one that is cut the end token stays."""
        prompt, cut = self.prompt(item), self.max_tokens is not None
        special = prompt.add_special_tokens
        ids: list[int] = self.tokenizer(
            prompt.text, add_special_tokens=special, truncation=cut, max_length=self.max_tokens
        )["input_ids"]
        return ids

    def continuation_ids(self, item: Any, answer: str) -> list[int]:
        """The tokens of an answer as they would follow the prompt; for an encoder-decoder model, of the answer alone.

        Prompt and answer are tokenized together, because some tokenizers mark the first word of a text.
        """
        answer = self._spelt(answer)
        if self.task == "seq2seq-lm":
            target: list[int] = self.tokenizer(text_target=answer)["input_ids"]
            return target
        prompt = self.prompt(item)
        special = prompt.add_special_tokens
        before: list[int] = self.tokenizer(prompt.text, add_special_tokens=special)["input_ids"]
        text = prompt.text + self.turn(item).gap + answer
        both: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        if both[: len(before)] != before or len(both) == len(before):
            both = before + self.tokenizer(self.turn(item).gap + answer, add_special_tokens=False)["input_ids"]
        return both[len(before) :]

    def _spelt(self, answer: str) -> str:
        """An answer as the model was trained to write it."""
        return answer.lower() if self.style == UNIFIEDQA else answer

    def batch(self, prompts: Sequence[list[int]]) -> dict[str, Tensor]:
        """input_ids and attention_mask, int64 [B, n], padded on the tokenizer's side."""
        padded = self.tokenizer.pad({"input_ids": list(prompts)}, padding=True, return_tensors="pt")
        return {name: padded[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def answered(self, item: Any, decoder_start: int | None) -> dict[str, Tensor]:
        """One prompt followed by its gold answer, as the model would see it while it writes that answer.

        decoder_start: the first decoder token of an encoder-decoder model.
        """
        prompt = self.token_ids(item)
        unanswerable = isinstance(item, Question) and not item.answers
        gold = UNANSWERABLE if unanswerable else shot_answer(item, self.dataset)
        answer = self.continuation_ids(item, gold)
        if self.task == "seq2seq-lm":
            start = [] if decoder_start is None else [decoder_start]
            return self.batch([prompt]) | {"decoder_input_ids": torch.tensor([start + answer[:-1]], device=self.device)}
        return self.batch([prompt + answer])

    def answers(self, generated: Tensor | Sequence[list[int]]) -> list[str]:
        """The answers in generated tokens, [B, m] or lists (prompt removed)."""
        texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [extract_answer(text, self.style, version_2=self.version_2) for text in texts]
