"""Ways to decode with a tiny model, and what changes its cache between two steps."""

from __future__ import annotations

from typing import Any

import tiny_models
import torch
from torch import Tensor
from transformers import PreTrainedModel


def prompt(name: str, batch: int = 2) -> dict[str, Any]:
    call: dict[str, Any] = dict(tiny_models.inputs(name, "left", batch=batch))
    call.pop("position_ids", None)
    call.pop("decoder_input_ids", None)
    return call


def generate(model: PreTrainedModel, name: str, **options: Any) -> Tensor:
    with torch.no_grad():
        made = model.generate(**prompt(name), max_new_tokens=8, min_new_tokens=8, **options)
    assert isinstance(made, Tensor)
    return made


def steps(model: PreTrainedModel, cache: Any, tokens: Tensor) -> Tensor:
    """Logits of tokens fed one by one."""
    with torch.no_grad():
        return torch.cat(
            [model(token, past_key_values=cache, use_cache=True).logits for token in tokens.split(1, dim=1)], 1
        )


def reorder(cache: Any) -> Tensor:
    cache.reorder_cache(torch.tensor([1, 0]))
    return torch.tensor([1, 0])


def select(cache: Any) -> Tensor:
    cache.batch_select_indices(torch.tensor([1]))
    return torch.tensor([1])


def repeat(cache: Any) -> Tensor:
    cache.batch_repeat_interleave(2)
    return torch.tensor([0, 0, 1, 1])
