"""Tiny things to test on: random models of the main families, small attention problems with a brute-force answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from families.every import EVERY
from families.family import VOCABULARY as VOCABULARY
from families.family import WINDOW as WINDOW
from families.family import scores
from hf_sparsify.patcher.methods import AttentionInputs, FullMask, RowRanges, Visibility
from torch import Tensor
from transformers import PreTrainedModel

DECODERS = ("llama", "mistral", "gemma2", "gpt_oss", "gpt2")
ENCODERS = ("bert",)
ENCODER_DECODERS = ("t5", "bart")
# Those that every test of a model runs on; tests/families has all the others.
FAMILIES = DECODERS + ENCODERS + ENCODER_DECODERS


def build(name: str) -> PreTrainedModel:
    """A random model in eval mode. Its weights are large enough that attention is far from uniform."""
    return EVERY[name].build()


def inputs(name: str, padding: str = "none", length: int = 12, batch: int = 2) -> dict[str, Tensor]:
    """What a forward call takes. padding "left" or "right" pads the second sequence by 4, "none" passes no mask.

    Decoders get the position ids that go with their padding, so that a sequence means the same with and without it.
    """
    return EVERY[name].inputs(padding, length, batch)


def logits(model: PreTrainedModel, call: dict[str, Tensor]) -> Tensor:
    """The model's logits, [batch, positions, ...]."""
    return scores(model, call)


def real_positions(name: str, call: dict[str, Tensor]) -> Tensor:
    """bool [batch, positions], False for the logits of padding."""
    if name in ENCODER_DECODERS:
        return torch.ones(call["decoder_input_ids"].shape, dtype=torch.bool)
    return call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()


# Small attention problems

LAYOUTS = ("all", "causal", "left", "right", "window", "full")


def visibility(layout: str, batch: int, heads: int, queries: int, keys: int) -> Visibility:
    """Who sees what: everything; causally; causally with left or right padding; a padded window; any boolean mask.

    From the second sequence on, two keys are padding; with "left" the rows before them see nothing.
    """
    if layout == "all":
        return RowRanges.all_keys(queries, keys)
    if layout == "full":
        generator = torch.Generator().manual_seed(queries * keys)
        visible = torch.rand(batch, heads, queries, keys, generator=generator) < 0.6
        visible[0, 0, 0] = False
        return FullMask(visible)
    causal = RowRanges.causal(queries, keys)
    if layout == "causal":
        return causal
    first, last = causal.first.repeat(batch, 1), causal.last.repeat(batch, 1)
    position = last - 1
    padding = torch.tensor([0] + [2] * (batch - 1)).unsqueeze(1)
    counted = position >= padding
    if layout == "right":
        last, counted = torch.minimum(last, keys - padding), position < keys - padding
    else:
        first = first + padding
    if layout == "window":
        first = torch.maximum(first, position - 2)
    return RowRanges(first, torch.maximum(first, last), counted)


def visible_keys(seen: Visibility, batch: int, heads: int, queries: int, keys: int) -> Tensor:
    """bool [batch, heads, queries, keys], spelled out one by one."""
    visible = torch.zeros(batch, heads, queries, keys, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                for j in range(keys):
                    if isinstance(seen, FullMask):
                        mask = seen.visible
                        visible[b, h, i, j] = mask[min(b, mask.shape[0] - 1), min(h, mask.shape[1] - 1), i, j]
                    else:
                        row = min(b, seen.first.shape[0] - 1)
                        visible[b, h, i, j] = int(seen.first[row, i]) <= j < int(seen.last[row, i])
    return visible


def attention_inputs(
    layout: str = "causal",
    *,
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    queries: int = 7,
    keys: int = 7,
    width: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    bias: bool = False,
    sinks: bool = False,
    softcap: float | None = None,
) -> AttentionInputs:
    """Random inputs of one attention call."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return AttentionInputs(
        query=random(batch, heads, queries, width),
        key=random(batch, groups, keys, width),
        value=random(batch, groups, keys, width + 1),
        visibility=visibility(layout, batch, heads, queries, keys),
        scale=0.7,
        bias=random(1, heads, queries, keys) if bias else None,
        softcap=softcap,
        sinks=random(heads) if sinks else None,
    )


Choose = Callable[[list[tuple[int, float]]], set[int]]


def highest(k: int) -> Choose:
    """Keeps the k highest scores, the earliest key first among equals."""
    return lambda row: {j for j, _ in sorted(row, key=lambda item: (-item[1], item[0]))[:k]}


def everything(row: list[tuple[int, float]]) -> set[int]:
    """Keeps all that is visible."""
    return {j for j, _ in row}


def row_scores(
    call: AttentionInputs, query: list[float], keys: list[list[float]], visible: list[bool], row: tuple[int, int, int]
) -> list[tuple[int, float]]:
    """The (key, score) pairs that one row sees, in Python floats. row: its sequence, head and query."""
    b, h, i = row
    found = []
    for j, key in enumerate(keys):
        if not visible[j]:
            continue
        score = sum(x * y for x, y in zip(query, key, strict=True)) * call.scale
        if call.bias is not None:
            score += float(call.bias[min(b, call.bias.shape[0] - 1), h, i, j])
        if call.softcap is not None:
            score = call.softcap * math.tanh(score / call.softcap)
        found.append((j, score))
    return found


def brute_force(call: AttentionInputs, choose: Choose) -> tuple[Tensor, Tensor]:
    """Attention in Python floats, one row at a time: output [B, H, q, E] and what was kept, bool [B, H, q, n].

    choose: from the (key, score) pairs that a row sees to the keys that it keeps.
    """
    batch, heads, queries, _ = call.query.shape
    groups, keys = call.key.shape[1:3]
    visible = visible_keys(call.visibility, batch, heads, queries, keys)
    out = torch.zeros(batch, heads, queries, call.value.shape[-1], dtype=torch.float64)
    kept = torch.zeros(batch, heads, queries, keys, dtype=torch.bool)
    q, k, v = (x.double().tolist() for x in (call.query, call.key, call.value))
    for b in range(batch):
        for h in range(heads):
            g = h * groups // heads
            for i in range(queries):
                row = row_scores(call, q[b][h][i], k[b][g], visible[b, h, i].tolist(), (b, h, i))
                chosen = choose(row)
                top = max((score for j, score in row if j in chosen), default=0.0)
                extra = 0.0 if call.sinks is None else math.exp(float(call.sinks[h]) - top)
                total = sum(math.exp(score - top) for j, score in row if j in chosen) + extra
                for j, score in row:
                    if j in chosen:
                        kept[b, h, i, j] = True
                        weight = math.exp(score - top) / total
                        for e, x in enumerate(v[b][g][j]):
                            out[b, h, i, e] += weight * x
    return out, kept
