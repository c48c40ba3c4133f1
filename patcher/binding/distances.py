"""Position biases by distance, from the model's own code to its attention function.

T5 and its kin make the bias of all queries and keys, [1, H, q, n], in the first layer and hand it from layer to layer.
While they are patched they make one row that holds every distance and hand on that, [1, H, q + n - 1]: an ordinary
tensor, so that it passes through checkpoints, graphs and device moves, and of three dimensions, so that it cannot be
mistaken for an ordinary bias.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.distance_bias import DistanceBias

# The method of T5Attention and its kin; LongT5's local attention has one of other arguments.
METHOD = "compute_bias"
ARGUMENTS = ["self", "query_length", "key_length", "device", "past_seen_tokens"]

# A module that stays dense gets the whole bias for torch's SDPA up to so many elements (64 MB in float32).
WHOLE_ELEMENTS = 2**24


def knows_distances(module: nn.Module) -> bool:
    """Whether an attention module makes a position bias that knows distances only."""
    method = getattr(type(module), METHOD, None)
    return method is not None and list(inspect.signature(method).parameters) == ARGUMENTS


def keep_distances(module: nn.Module) -> None:
    """Makes a module's bias one of three dimensions, until make_whole."""
    setattr(module, METHOD, partial(bias_by_distance, module))


def make_whole(module: nn.Module) -> None:
    """Undoes keep_distances."""
    if METHOD in vars(module):
        delattr(module, METHOD)


def bias_by_distance(
    module: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: int | Tensor = 0
) -> Tensor:
    """What the module's own code adds for each distance, [1, H, q + n - 1] (see DistanceBias): its bias of the last
    query, whose row begins as many keys earlier as there are queries before it."""
    before = query_length - 1
    make = getattr(type(module), METHOD)
    row: Tensor = make(module, 1, before + key_length, device=device, past_seen_tokens=past_seen_tokens + before)
    return row.squeeze(2)


def spelled_out(position_bias: Tensor | None, queries: int, keys: int) -> Tensor | None:
    """A position bias as torch's SDPA takes it, [1, H, queries, keys]."""
    if position_bias is None or position_bias.ndim == 4:
        return position_bias
    return DistanceBias(position_bias[..., : queries + keys - 1], queries).whole()


def is_long(position_bias: Tensor | None, query: Tensor, key: Tensor) -> bool:
    """Whether a call of a dense module goes in chunks, as its whole bias would be large. A compiled graph, which should
    not depend on the length, makes it whole."""
    if position_bias is None or position_bias.ndim == 4 or torch.compiler.is_compiling():
        return False
    return query.shape[1] * query.shape[2] * key.shape[2] > WHOLE_ELEMENTS
