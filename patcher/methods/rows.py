"""Attention row by row: the part that top-k and top-theta share.

For a chunk of queries at a time: scale, add bias, soft-cap, mask, select, softmax, weigh. Only the selection differs
between methods. No (queries x keys) tensor is made for a whole sequence: memory beside the inputs is linear in length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunk import AttentionInputs, Chunk, Observer, RowCounts, Select, Selection, softmax
from .compensation import compensated, with_mean
from .distance_bias import bias_rows
from .rounded_keys import rounded

# Scores of one chunk, in elements (4 MB in float32): measured faster than 4M and 16M with 2 MB of L2 per core.
CHUNK_ELEMENTS = 1024 * 1024


def attend_rows(
    inputs: AttentionInputs,
    select: Select | None = None,
    *,
    count: bool = False,
    observer: Observer | None = None,
    chunk_size: int | None = None,
    compensation: str = "none",
    v_mean: str = "visible",
    denominator: str = "exact",
) -> tuple[Tensor, RowCounts | None]:
    """Attention of inputs with the keys that `select` keeps (None: dense).

    compensation, v_mean: see compensation.py. denominator: "rounded" gives chunks of a single query the scores of its
    rounded keys too. Returns the output [B, H, q, E] in the dtype of value, and counts if
    asked. A row that sees nothing gives zeros.
    """
    queries, keys = inputs.query.shape[2], inputs.key.shape[2]
    batch, heads = inputs.query.shape[:2]
    if chunk_size is None:
        chunk_size = max(1, CHUNK_ELEMENTS // max(1, batch * heads * keys))
    lengths = inputs.visibility.lengths()
    outputs, counts = [], []
    for start in range(0, queries, chunk_size):
        stop = min(start + chunk_size, queries)
        low, high = inputs.visibility.key_span(start, stop)
        key = inputs.key[:, :, low:high]
        scores, coarse = _scores(inputs, key, start, stop, low, high), None
        if denominator == "rounded" and queries == 1:
            coarse = _scores(inputs, rounded(key), start, stop, low, high)
            scores = scores.masked_fill(coarse.isnan(), torch.nan)  # a key that is not finite spoils its rows
        lengths_here = lengths[..., start:stop]
        chunk = Chunk(
            scores, lengths_here, inputs.visibility, start, stop, low, high, inputs.sinks, inputs.scale, coarse
        )
        if observer is not None:
            observer(chunk)
        selection = Selection(None) if select is None or low == high else select(chunk)
        outputs.append(_output(inputs, chunk, selection, compensation, v_mean))
        if count:
            counts.append(count_kept(chunk, selection, inputs.key.shape[1]))
    return torch.cat(outputs, 2), _join(counts) if count else None


def _scores(inputs: AttentionInputs, key: Tensor, start: int, stop: int, low: int, high: int) -> Tensor:
    """Masked scores [B, H, c, m] of a chunk with key [B, G, m, D], which is not expanded for grouped queries."""
    query = inputs.query[:, :, start:stop]
    dtype = torch.promote_types(query.dtype, torch.float32)
    batch, heads, rows, width = query.shape
    groups = key.shape[1]
    # The factor goes to the query, which has fewer elements than the scores.
    grouped = (query.to(dtype) * inputs.scale).reshape(batch, groups, heads // groups * rows, width)
    scores = torch.matmul(grouped, key.to(dtype).transpose(2, 3)).view(batch, heads, rows, high - low)
    if inputs.bias is not None:
        scores = scores + bias_rows(inputs.bias, start, stop, low, high)
    if inputs.softcap is not None:
        scores = torch.tanh(scores / inputs.softcap) * inputs.softcap
    hidden = inputs.visibility.hidden(start, stop, low, high)
    return scores if hidden is None else torch.where(hidden, -torch.inf, scores)


def _output(inputs: AttentionInputs, chunk: Chunk, selection: Selection, compensation: str, v_mean: str) -> Tensor:
    """The output rows of a chunk [B, H, c, E]."""
    keep, value = selection.keep, inputs.value[:, :, chunk.low : chunk.high]
    if keep is None or compensation != "sdc+vmc" or inputs.value_sum is None:
        return _weigh(inputs, weights_of(chunk, selection, compensation, v_mean), value)
    weights, missing = compensated(chunk, selection, keep)
    mean = _mean_from_sum(inputs, chunk, keep, v_mean, value)
    return (_weigh(inputs, weights, value, weights.dtype) + missing * mean).to(value.dtype)


def weights_of(chunk: Chunk, selection: Selection, compensation: str = "none", v_mean: str = "visible") -> Tensor:
    """What the value rows of a chunk are weighed with [B, H, c, m]; zeros for a row that sees nothing."""
    keep = selection.keep
    if keep is None:
        return chunk.weights
    if compensation == "none":
        return softmax(torch.where(keep, chunk.scores, -torch.inf), chunk.sinks)
    weights, missing = compensated(chunk, selection, keep)
    return weights if compensation == "sdc" else with_mean(chunk, keep, weights, missing, v_mean)


def _mean_from_sum(inputs: AttentionInputs, chunk: Chunk, keep: Tensor, v_mean: str, value: Tensor) -> Tensor:
    """The mean value row [B, H, 1, E] of a single query from the sum of all that it sees."""
    batch, heads = chunk.scores.shape[:2]
    total = inputs.value_sum.to(chunk.scores.dtype).unsqueeze(2)  # type: ignore[union-attr]
    total = total.repeat_interleave(heads // total.shape[1], 1)
    members = chunk.lengths.unsqueeze(-1).expand(batch, heads, 1, 1)
    if v_mean == "dropped":
        total = total - _weigh(inputs, keep.to(total.dtype), value, total.dtype)
        members = members - keep.sum(-1, keepdim=True)
    return total / members.clamp(min=1)


def _weigh(inputs: AttentionInputs, weights: Tensor, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """weights [B, H, c, m] times V: [B, H, c, E], in the dtype of value unless another is asked for."""
    if inputs.dropout:
        weights = torch.nn.functional.dropout(weights, inputs.dropout)
    batch, heads, rows, width = weights.shape
    groups = value.shape[1]
    grouped = weights.reshape(batch, groups, heads // groups * rows, width)
    out = torch.matmul(grouped, value.to(weights.dtype))
    if not bool(torch.isfinite(out).all()):
        out = _weigh_visible(grouped, value.to(weights.dtype))
    return out.view(batch, heads, rows, value.shape[-1]).to(dtype or value.dtype)


def _weigh_visible(weights: Tensor, value: Tensor) -> Tensor:
    """weights @ value where a zero weight hides even a NaN or infinite value (0 * NaN would be NaN)."""
    broken = ~torch.isfinite(value)
    out = torch.matmul(weights, value.masked_fill(broken, 0))
    reached = torch.matmul((weights != 0).to(value.dtype), broken.to(value.dtype)) > 0
    return out.masked_fill(reached, torch.nan)


def count_kept(chunk: Chunk, selection: Selection, groups: int | None) -> RowCounts:
    """What a selection keeps of a chunk. groups: KV heads; where they are not known (None) V rows are not counted."""
    scores, keep = chunk.scores, selection.keep
    kept = chunk.visible if keep is None else keep & chunk.visible
    batch, heads, rows, width = scores.shape
    none = torch.zeros(batch, heads, rows, dtype=torch.bool, device=scores.device)
    v_rows = None if groups is None else kept.view(batch, groups, heads // groups, rows, width).any(2).sum(-1)
    return RowCounts(
        kept.sum(-1),
        none if selection.fallback is None else selection.fallback.expand(batch, heads, rows),
        none if selection.rescued is None else selection.rescued.expand(batch, heads, rows),
        v_rows,
    )


def _join(counts: list[RowCounts]) -> RowCounts:
    return RowCounts(
        torch.cat([c.kept for c in counts], -1),
        torch.cat([c.fallback for c in counts], -1),
        torch.cat([c.rescued for c in counts], -1),
        torch.cat([c.v_rows for c in counts if c.v_rows is not None], -1),
    )
