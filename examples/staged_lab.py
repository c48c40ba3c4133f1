"""What the scripts on staged scores share: a model's own queries and keys, and maps that put the telling part first."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import hf_sparsify
import torch
from hf_sparsify import LoadedModel, LoadOptions, TopK, UsageError
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.patcher.methods import AttentionInputs
from torch import Tensor
from torch.nn import functional

FIT_QUERIES = 512  # the last ones of the calibration text

Layer = tuple[Tensor, Tensor, Tensor]  # scaled queries [H, r, D], keys [G, n, D], values [G, n, E]


@dataclass(frozen=True)
class Record(TopK):
    """Attends densely and keeps what each layer works on."""

    last: int = 64
    layers: list[Layer] = field(default_factory=list)

    def attend(self, inputs: AttentionInputs, **options: Any) -> tuple[Tensor, None]:
        query, key, value = inputs.query, inputs.key, inputs.value
        self.layers.append((query[0, :, -self.last :] * inputs.scale, key[0], value[0]))
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=inputs.scale, enable_gqa=True
        )
        return out, None


@dataclass(frozen=True)
class Map:
    """query . key = (query @ to_query) . ((key - mean) @ to_key) + query . mean; all [G, D or 1, D]."""

    mean: Tensor
    to_query: Tensor
    to_key: Tensor


def rotation(key: Tensor) -> Map:
    """The principal axes of the keys [G, n, D]."""
    center = key.mean(1, keepdim=True)
    axes = torch.linalg.svd(key - center, full_matrices=False).Vh.mT
    return Map(center, axes, axes)


def score_axes(query: Tensor, key: Tensor) -> Map:
    """The axes that carry most of the variance of the scores of queries [G, r, D]; not orthogonal."""
    center = key.mean(1, keepdim=True)
    (of_query, inverse_query), (of_key, inverse_key) = _roots(query), _roots(key - center)
    left, sizes, right = torch.linalg.svd(of_query @ of_key)
    sizes = sizes.sqrt().unsqueeze(1)
    return Map(center, inverse_query @ left * sizes, inverse_key @ right.mT * sizes)


def _roots(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of the rows' second moments and its inverse."""
    sizes, axes = torch.linalg.eigh(rows.mT @ rows / rows.shape[1])
    sizes = sizes.clamp(min=1e-6 * sizes.amax()).sqrt().unsqueeze(1)
    return axes * sizes @ axes.mT, axes / sizes @ axes.mT


def opened(description: str | None) -> tuple[argparse.Namespace, LoadedModel]:
    """What was asked for on the command line, and the model; one thread, no gradients."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--queries", type=int, default=64, help="the last ones of the text")
    parser.add_argument("--k", type=int, default=64)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    return args, load_named(args.model, LoadOptions())


def recorded(loaded: LoadedModel, data: str, tokens: int, queries: int) -> list[Layer]:
    """What every layer works on, with the last queries alone, of so many tokens of a data set's passages."""
    passages = dict.fromkeys(question.context for question in load_items(data).items)
    ids = loaded.tokenizer(" ".join(passages), add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < tokens:
        raise UsageError(f"the passages of {data} have {len(ids)} tokens: lower --tokens {tokens}")
    record = Record(k=1, last=queries)
    with hf_sparsify.patch(loaded.model, record), torch.inference_mode():
        loaded.model(input_ids=torch.tensor([ids[:tokens]]), logits_to_keep=1)
    return record.layers


def grouped(layer: Layer) -> Tensor:
    """The queries of a KV head's heads one after the other: [G, H / G * r, D]."""
    return layer[0].reshape(layer[1].shape[0], -1, layer[0].shape[2])


def hide_future(scores: Tensor, queries: int) -> Tensor:
    """Scores [G, H / G * queries, n] of the text's last queries, -inf where these may not look."""
    rows, keys = scores.shape[1:]
    seen = torch.arange(keys) <= torch.arange(keys - queries, keys).unsqueeze(1)
    return scores.masked_fill(~seen.repeat(rows // queries, 1), -torch.inf)
