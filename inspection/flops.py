"""Where the work of a dense model is, counted by torch on the meta device: no weights, no memory, any length."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..benchmark.workload import DECODE, FORWARD, PREFILL
from ..patcher.binding.feed_forward import feed_forward_modules
from ..patcher.binding.growing_cache import cache_argument, cache_in
from ..patcher.binding.modules import attention_modules, unreachable_attention

# Products of two activations. Projections multiply by a weight of two dimensions, which torch does in mm or addmm.
PRODUCTS = frozenset({"bmm", "baddbmm"})


@dataclass(frozen=True)
class Work:
    """One phase of one sequence. total: FLOPs of all matrix products, two for a multiplication with its addition.

    attention, feed_forward: those of each module's products of scores and of values, and of each down-projection.
    cache_bytes: the keys and values that a decoding step reads, 0 in other phases.
    """

    total: int
    attention: Mapping[str, int] = field(default_factory=dict)
    feed_forward: Mapping[str, int] = field(default_factory=dict)
    cache_bytes: int = 0

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """What a step with one token reads of the weights: each element is multiplied once."""
        return (self.total - sum(self.attention.values())) // 2 * dtype.itemsize


def why_not(model: Any) -> str | None:
    """Why the work of a model cannot be counted, as far as that is known without running it; None if it can."""
    if model.main_input_name != "input_ids" and fixed_length(model) is None:
        return f"{type(model).__name__} takes no tokens"
    if any("mamba" in type(module).__name__.lower() for module in model.modules()):
        return "without its own kernels a state-space layer takes one token after the other"
    return None


def fixed_length(model: Any) -> int | None:
    """How many positions the encoder of a speech model such as Whisper always has."""
    if model.main_input_name != "input_features" or not hasattr(model.config, "num_mel_bins"):
        return None
    return getattr(model.config, "max_source_positions", None)


def count(model: Any, tokens: int) -> dict[str, Work]:
    """The work of one sequence of so many tokens, phase by phase as in benchmark.workload. model: on meta.

    A causal model reads all tokens at once and then one more with all of them in its cache; an encoder-decoder model
    reads them with its encoder and writes one token, and then another; others only read. Raises what the model raises.
    """
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    one = ids[:, :1]
    takes = inspect.signature(model.forward).parameters
    last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    if model.config.is_encoder_decoder:
        read = _run(model, **_source(model, ids), decoder_input_ids=one)
        after = {"encoder_outputs": (read.outputs.encoder_last_hidden_state,), "decoder_input_ids": one}
    elif cache_argument(model) in takes and model.can_generate():
        read = _run(model, input_ids=ids, use_cache=True, **last)
        after = {"input_ids": one, "use_cache": True}
    else:
        return {FORWARD: _work(model, _run(model, input_ids=ids), visible=tokens)}
    cache = cache_in(read.outputs)
    found = {PREFILL: _work(model, read, visible=tokens)}
    if cache is not None:
        size = _bytes(cache)
        found[DECODE] = _work(model, _run(model, **{cache_argument(model): cache}, **after), cache_bytes=size)
    return found


@dataclass(frozen=True)
class _Run:
    """A forward pass. flops: by module name (the class of the model first) and operation."""

    outputs: Any
    total: int
    flops: Mapping[str, Mapping[str, int]]

    def of(self, name: str) -> int:
        """All that a module does."""
        return sum(self.flops.get(name, {}).values())

    def own_products(self, name: str) -> int:
        """What a module does in products of activations, without the modules inside it."""
        inside = (key for key in self.flops if key.rpartition(".")[0] == name)
        return self._products(name) - sum(map(self._products, inside))

    def _products(self, name: str) -> int:
        return sum(flops for operation, flops in self.flops.get(name, {}).items() if operation in PRODUCTS)


def _run(model: Any, **inputs: Any) -> _Run:
    counter = FlopCounterMode(display=False)
    # Modules make tensors where torch does by default.
    with torch.no_grad(), torch.device("meta"), counter:
        outputs = model(**inputs)
    flops = {
        name.partition(".")[2]: {operation.__name__: flops for operation, flops in by_operation.items()}
        for name, by_operation in counter.get_flop_counts().items()
    }
    return _Run(outputs, counter.get_total_flops(), flops)


def _work(model: Any, run: _Run, *, visible: int | None = None, cache_bytes: int = 0) -> Work:
    """What was counted, by part. visible: the length of a text that is read at once. Torch counts every pair of its
    tokens in self-attention; of causal and windowed attention we count the pairs that may be seen."""
    counted, attention = {}, {}
    for name, shares in _attention(model).items():
        counted[name] = run.own_products(name)
        attention[name] = counted[name] if visible is None else round(counted[name] * shares.of(visible))
    total = run.total - sum(counted.values()) + sum(attention.values())
    feed_forward = {layer.name: run.of(layer.name) for layer in feed_forward_modules(model)}
    return Work(total, attention, feed_forward, cache_bytes)


@dataclass(frozen=True)
class _Sees:
    """Which keys the rows of a module see. causal, window: of self-attention over a whole text."""

    causal: bool
    window: int | None

    def of(self, tokens: int) -> float:
        """The share of all pairs of so many tokens."""
        return visible_pairs(tokens, self.causal, self.window) / tokens**2


def visible_pairs(tokens: int, causal: bool, window: int | None) -> int:
    """How many (query, key) pairs self-attention over a text sees. window: keys back, the query's own included, and in
    bidirectional attention as many ahead."""
    reach = min(tokens, window or tokens)
    back = reach * (reach + 1) // 2 + (tokens - reach) * reach
    return back if causal else 2 * back - tokens


def _attention(model: Any) -> dict[str, _Sees]:
    """The attention modules of a model by name, those that cannot be patched too."""
    both = model.config.is_encoder_decoder
    found = {
        # A decoder behind an encoder is given one token.
        target.name: _Sees(False, None) if both and target.stack == "decoder" else _Sees(target.causal, target.window)
        for target in attention_modules(model)
    }
    own = set(unreachable_attention(model))
    causal = not both and model.can_generate()
    found |= {
        name: _Sees(causal, None) for name, module in model.named_modules() if type(module).__name__ in own and name
    }
    return found


def _source(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What an encoder-decoder model reads: tokens, or the features of a speech model's whole window."""
    length = fixed_length(model)
    if length is None:
        return {"input_ids": ids}
    # Its second convolution halves the length.
    return {"input_features": torch.zeros(1, model.config.num_mel_bins, 2 * length, dtype=model.dtype, device="meta")}


def _bytes(cache: Any) -> int:
    """The keys and values in a cache, of self- and of cross-attention."""
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    layers: list[Any] = [layer for part in (parts if any(parts) else [cache]) for layer in getattr(part, "layers", ())]
    found = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in found if isinstance(tensor, Tensor))
