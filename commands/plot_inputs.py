"""What `sparsify plot` has a model read: a prompt, or the first items of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..evaluation.generation import decoder_start, generate_greedy
from ..evaluation.inputs import accepted_inputs, text_limit
from ..evaluation.items import ItemSet
from ..evaluation.tasks import task_for
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import input_device
from ..patcher.binding.tasks import WITHOUT_TEXT
from .generate import prompt_inputs

MEASURED = 8  # items of a data set on which what is kept is measured
MOST_TOKENS = 1024  # of a pattern: it has this many weights squared
ANSWER = 16  # tokens that the dense model answers a prompt with, for the decoder of an encoder-decoder model to read


@dataclass(frozen=True)
class Read:
    """Model inputs, one sequence each without padding, and what they are, in words. The first one's pattern is drawn;
    what is kept is measured on all."""

    inputs: list[dict[str, Tensor]]
    first: str
    all: str


def read_prompt(loaded: LoadedModel, prompt: str) -> Read:
    """The inputs of one prompt, which a chat model gets as a user's turn.

    UsageError for an empty prompt, one that is too long, or a model that does not read text.
    """
    check_prompt(prompt)
    if loaded.base.task in WITHOUT_TEXT:
        raise UsageError(f"{loaded.base.id} does not read text alone ({loaded.base.task}): there is nothing to plot")
    if loaded.base.task in ("causal-lm", "seq2seq-lm"):
        inputs = prompt_inputs(loaded.tokenizer, prompt, input_device(loaded.model))
    else:
        names = accepted_inputs(loaded.model, loaded.tokenizer)
        encoded = loaded.tokenizer(prompt, return_tensors="pt")
        inputs = {name: encoded[name].to(input_device(loaded.model)) for name in names}
    length, limit = inputs["input_ids"].shape[1], text_limit(loaded.model, loaded.tokenizer)
    most = min(MOST_TOKENS, limit or MOST_TOKENS)
    if length > most:
        raise UsageError(f"the prompt has {length:,} tokens and a pattern at most {most:,}: shorten it")
    if loaded.base.task == "seq2seq-lm":
        inputs |= {"decoder_input_ids": _answered(loaded, inputs)}
    return Read([inputs], "the prompt", "the prompt")


def check_prompt(prompt: str) -> None:
    """UsageError for a prompt without a word."""
    if not prompt.strip():
        raise UsageError("the prompt is empty")


def read_items(loaded: LoadedModel, items: ItemSet) -> Read:
    """The inputs of the first items, with their gold answers as in a calibration.

    DataError if none fits the model, UsageError if the first one is too long for a pattern; else what task_for raises.
    """
    task = task_for(loaded, items)
    found: list[dict[str, Tensor]] = []
    for item in items.items:
        found += task.calibration_inputs(item)[: 1 if not found else None]
        if len(found) >= MEASURED:
            break
    if not found:
        raise DataError(f"no item of {items.name} fits what the model can read at once")
    length = max(tokens.shape[1] for tokens in found[0].values())
    if length > MOST_TOKENS:
        raise UsageError(
            f"the first item of {items.name} has {length:,} tokens and a pattern at most {MOST_TOKENS:,}: "
            "give a shorter text with --prompt"
        )
    return Read(found, f"the first item of {items.name}", f"{len(found)} inputs of {items.name}")


def token_texts(tokenizer: Any, inputs: Mapping[str, Tensor], stack: str, count: int) -> list[str] | None:
    """The texts of the tokens that the rows of a stack are, None where they are not what the model was given."""
    decoder = inputs.get("decoder_input_ids") if stack == "decoder" else None
    ids = inputs["input_ids"] if decoder is None else decoder
    if ids.shape[1] != count:
        return None
    return [_text(tokenizer, token) for token in ids[0].tolist()]


def _text(tokenizer: Any, token: int) -> str:
    text: str = tokenizer.decode([token])
    return text.replace("\n", "\\n").strip() or str(tokenizer.convert_ids_to_tokens(token))


def _answered(loaded: LoadedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Decoder inputs [1, m]: the start token and the dense answer but for its last token."""
    with torch.inference_mode():
        answer = generate_greedy(loaded.model, inputs, ANSWER, loaded.tokenizer.pad_token_id)
    start = [token for token in [decoder_start(loaded.model)] if token is not None]
    return torch.tensor([start + answer[0, :-1].tolist()], device=answer.device)
