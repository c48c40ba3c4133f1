"""Position biases by distance, from the model's own code to its attention function.

T5 and its kin make the bias of all queries and keys, [1, H, q, n], in the first layer and hand it from layer to layer.
While they are patched they make one row that holds every distance and hand on that, [1, H, q + n - 1]: an ordinary
tensor, so that it passes through checkpoints, graphs and device moves, and of three dimensions, so that it cannot be
mistaken for an ordinary bias. Their cross-attention, which has none, would make zeros: it gets one with no distances.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..methods.distance_bias import DistanceBias

# The method of T5Attention and its kin; LongT5's local attention has one of other arguments.
METHOD = "compute_bias"
ARGUMENTS = ["self", "query_length", "key_length", "device", "past_seen_tokens"]

# A module that stays dense gets the whole bias for torch's SDPA up to so many elements (64 MB in float32), and any
# number of them under torch.compile.
WHOLE_ELEMENTS = 2**24

# The attribute of a position bias that holds it.
WHOLE = "_hf_sparsify_whole"


def knows_distances(module: nn.Module) -> bool:
    """Whether an attention module makes a position bias that knows distances only."""
    method = getattr(type(module), METHOD, None)
    return method is not None and list(inspect.signature(method).parameters) == ARGUMENTS


def keep_distances(module: nn.Module) -> list[RemovableHandle]:
    """Makes a module's bias one of three dimensions, until make_whole and until the handles are removed."""
    if module.has_relative_attention_bias:
        setattr(module, METHOD, partial(bias_by_distance, module))
    elif "position_bias" in inspect.signature(type(module).forward).parameters:
        return [module.register_forward_pre_hook(add_nothing, with_kwargs=True)]
    return []


def make_whole(module: nn.Module) -> None:
    """Undoes keep_distances, but for its handles."""
    if METHOD in vars(module):
        delattr(module, METHOD)


def add_nothing(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Before the forward of a module without a bias of its own, which would make zeros where it is given none."""
    if kwargs.get("key_value_states") is None or kwargs.get("position_bias") is not None:
        return None
    return args, {**kwargs, "position_bias": kwargs["key_value_states"].new_zeros(1, 1, 0)}


def bias_by_distance(
    module: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: int | Tensor = 0
) -> Tensor:
    """What the module's own code adds for each distance, [1, H, q + n - 1] (see DistanceBias): its bias of the last
    query, whose row begins as many keys earlier as there are queries before it."""
    before = query_length - 1
    make = getattr(type(module), METHOD)
    row: Tensor = make(module, 1, before + key_length, device=device, past_seen_tokens=past_seen_tokens + before)
    return row.squeeze(2)


def read_bias(position_bias: Tensor | None, queries: int, keys: int) -> Tensor | DistanceBias | None:
    """What a position bias adds to scores, [1 or B, 1 or H, queries, keys] or by distance; it may have more keys."""
    if position_bias is None or not position_bias.shape[-1]:
        return None
    if position_bias.ndim == 3:
        return DistanceBias(position_bias[..., : queries + keys - 1], queries)
    return position_bias[..., :keys].expand(-1, -1, queries, -1)


def spelled_out(position_bias: Tensor | None, queries: int, keys: int) -> Tensor | None:
    """A position bias as torch's SDPA takes it. Where nothing is trained it is kept on the tensor for the layers that
    follow."""
    if position_bias is None or position_bias.ndim == 4:
        return position_bias
    made: Tensor | None = getattr(position_bias, WHOLE, None)
    if made is not None:
        return made
    bias = read_bias(position_bias, queries, keys)
    if not isinstance(bias, DistanceBias):
        return bias
    made = bias.whole()
    if not (position_bias.requires_grad or torch.compiler.is_compiling()):
        setattr(position_bias, WHOLE, made)
    return made


def is_long(position_bias: Tensor | None, query: Tensor, key: Tensor) -> bool:
    """Whether a call of a dense module goes in chunks, as its whole bias would be large. A compiled graph, which should
    not depend on the length, makes it whole."""
    if position_bias is None or position_bias.ndim == 4 or torch.compiler.is_compiling():
        return False
    return position_bias.numel() > 0 and query.shape[1] * query.shape[2] * key.shape[2] > WHOLE_ELEMENTS
