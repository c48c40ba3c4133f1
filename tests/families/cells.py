"""The matrix: every family with every method in every way that a model is used."""

from __future__ import annotations

from typing import Any

import torch
from hf_sparsify.patcher.binding.feed_forward import feed_forward_modules
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.methods import Clustered, Method, TopK, TopKFeedForward, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from pairwise import pairwise
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from .every import EVERY
from .family import Family, in_dtype_of, scores

Cell = tuple[str, str, str]  # family, method, setting

METHODS: dict[str, Method] = {
    "top-k": TopK(k=3),
    "top-theta": TopTheta(k=3),
    "compensated": TopK(k=3, compensation="sdc+vmc"),
    "clustered": Clustered(clusters=1, k=3),
    "feed-forward": TopKFeedForward(k=8),
}
LENGTH = 9  # of texts; longer ones take the definition, a loop over every score, too long
PADDINGS = {"unpadded": "none", "padded left": "left", "padded right": "right"}
_GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 5},
}


def _methods(family: Family) -> list[str]:
    lacks = {"clustered": not family.bidirectional, "feed-forward": not family.feed_forward}
    return [method for method in METHODS if not lacks.get(method)]


def _settings(family: Family) -> list[str]:
    padded = [setting for setting, padding in PADDINGS.items() if padding in family.paddings]
    return [*padded, *family.modes, *(["window"] if family.window else [])]


CELLS: list[Cell] = [
    (name, method, setting)
    for name, family in EVERY.items()
    for method in _methods(family)
    for setting in _settings(family)
]
PART: set[Cell] = set(pairwise(CELLS))  # type: ignore[arg-type]


def plan_for(model: nn.Module, method: Method) -> dict[str, Method]:
    """The method on every module that takes it."""
    if isinstance(method, TopKFeedForward):
        return {module.name: method for module in feed_forward_modules(model)}
    return {
        module.name: method
        for module in attention_modules(model)
        if (module.nature == "bidirectional" or not isinstance(method, Clustered))
        and "LocalSelfAttention" not in module.name  # LongT5's encoder does not use the interface
    }


def tables_for(plan: dict[str, Method]) -> dict[str, ModuleThresholds]:
    """For top-theta: thresholds that keep some keys of rows of 4 to 9 keys. Longer rows have none."""
    table = ModuleThresholds(torch.tensor([4.0, 9.0]), torch.tensor([[-2.2, -2.0]] * 4), 4, 9)
    return {name: table for name, method in plan.items() if isinstance(method, TopTheta)}


def run(model: PreTrainedModel, family: Family, setting: str) -> Tensor:
    """What the model says, always to the same inputs: scores of real positions, or of every token that it writes."""
    if setting == "window":
        return through_a_cache(model, family)
    if setting in _GENERATION:
        return written(model, family, **_GENERATION[setting])
    call = family.inputs(PADDINGS[setting], LENGTH)
    found = scores(model, call)
    return found[family.real_rows(call, found)]


@torch.no_grad()
def written(model: PreTrainedModel, family: Family, **options: Any) -> Tensor:
    """Scores of 4 tokens that follow a prompt, padded if it can be: [4, sequences, vocabulary]."""
    call = in_dtype_of(model, family.inputs("left" if "left" in family.paddings else "none", LENGTH))
    prompt = {name: value for name, value in call.items() if name not in ("position_ids", "decoder_input_ids")}
    made = model.generate(
        **prompt,
        **options,
        do_sample=False,
        min_new_tokens=4,
        max_new_tokens=4,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(made.logits)


@torch.no_grad()
def through_a_cache(model: PreTrainedModel, family: Family) -> Tensor:
    """Scores of a text that is fed in pieces through a cache whose windowed layers forget: [batch, 12, vocabulary]."""
    ids, cache = family.inputs()["input_ids"], DynamicCache(config=model.config)
    pieces = ids.split([7, *[1] * 5], dim=1)
    return torch.cat([model(piece, past_key_values=cache, use_cache=True).logits for piece in pieces], 1)
