"""What is computed for one chunk of rows: scores, weights and the weighed values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import asking
from .chunk import AttentionInputs, Chunk, Selection, softmax
from .compensation import compensated, with_mean
from .distance_bias import bias_rows
from .dropout import dropout_mask


class Span(NamedTuple):
    """The queries start..stop and the keys low..high, which are all that these queries see."""

    start: int
    stop: int
    low: int
    high: int


def scores_of(inputs: AttentionInputs, span: Span, key: Tensor) -> Tensor:
    """Scaled scores and bias [B, H, c, m] of a chunk with key [B, G, m, D], not expanded for grouped queries."""
    query = grouped_query(inputs, span)
    batch, heads = inputs.query.shape[:2]
    scores = torch.matmul(query, key.to(query.dtype).transpose(2, 3))
    scores = scores.view(batch, heads, span.stop - span.start, span.high - span.low)
    return scores if inputs.bias is None else scores + bias_rows(inputs.bias, *span)


def grouped_query(inputs: AttentionInputs, span: Span) -> Tensor:
    """The scaled queries of a chunk, those of a KV head side by side: [B, G, H / G x c, D], float32 or wider."""
    query = inputs.query[:, :, span.start : span.stop]
    # The factor goes to the query, which has fewer elements than the scores.
    return by_group(query.to(torch.promote_types(query.dtype, torch.float32)) * inputs.scale, inputs.key.shape[1])


def by_group(rows: Tensor, groups: int) -> Tensor:
    """[B, H, c, ...] as [B, G, H / G x c, ...]."""
    batch, heads, count, width = rows.shape
    return rows.reshape(batch, groups, heads // groups * count, width)


def chunk_of(
    inputs: AttentionInputs,
    span: Span,
    scores: Tensor,
    hidden: Tensor | None,
    lengths: Tensor,
    coarse: Tensor | None = None,
) -> Chunk:
    """A chunk as a selection sees it. scores, and coarse of rounded keys: as scores_of gives them. hidden: bool like
    scores, or broadcast. lengths: int64 [B or 1, H or 1, q], of all rows."""
    lengths = lengths[..., span.start : span.stop]
    scores = _masked(inputs, scores, hidden)
    if coarse is not None:
        coarse = _masked(inputs, coarse, hidden)
        scores = scores.masked_fill(coarse.isnan(), torch.nan)  # a key that is not finite spoils its rows
    return Chunk(scores, lengths, inputs.visibility, *span, inputs.sinks, inputs.scale, coarse)


def _masked(inputs: AttentionInputs, scores: Tensor, hidden: Tensor | None) -> Tensor:
    if inputs.softcap is not None:
        scores = torch.tanh(scores / inputs.softcap) * inputs.softcap
    return scores if hidden is None else torch.where(hidden, -torch.inf, scores)


def weights_of(chunk: Chunk, selection: Selection, compensation: str = "none", v_mean: str = "visible") -> Tensor:
    """What the value rows of a chunk are weighed with [B, H, c, m]; zeros for a row that sees nothing."""
    keep = selection.keep
    if keep is None:
        return chunk.weights
    if compensation == "none":
        return softmax(torch.where(keep, chunk.scores, -torch.inf), chunk.sinks)
    weights, missing = compensated(chunk, selection, keep)
    return weights if compensation == "sdc" else with_mean(chunk, keep, weights, missing, v_mean)


def output_of(
    inputs: AttentionInputs,
    chunk: Chunk,
    selection: Selection,
    compensation: str,
    v_mean: str,
    generator: torch.Generator | None,
) -> Tensor:
    """The output rows of a chunk [B, H, c, E]. generator: of dropout."""
    keep, value = selection.keep, inputs.value[:, :, chunk.low : chunk.high]
    if keep is None or compensation != "sdc+vmc" or inputs.value_sum is None:
        weights = weights_of(chunk, selection, compensation, v_mean)
        if generator is not None:
            weights = weights * dropout_mask(weights, inputs.dropout, generator)
        return _weigh(weights, value)
    weights, missing = compensated(chunk, selection, keep)
    mean = _mean_from_sum(inputs, chunk, keep, v_mean, value)
    return (_weigh(weights, value, weights.dtype) + missing * mean).to(value.dtype)


def _mean_from_sum(inputs: AttentionInputs, chunk: Chunk, keep: Tensor, v_mean: str, value: Tensor) -> Tensor:
    """The mean value row [B, H, 1, E] of a single query from the sum of all that it sees."""
    batch, heads = chunk.scores.shape[:2]
    total = inputs.value_sum.to(chunk.scores.dtype).unsqueeze(2)  # type: ignore[union-attr]
    total = total.repeat_interleave(heads // total.shape[1], 1)
    members = chunk.lengths.unsqueeze(-1).expand(batch, heads, 1, 1)
    if v_mean == "dropped":
        total = total - _weigh(keep.to(total.dtype), value, total.dtype)
        members = members - keep.sum(-1, keepdim=True)
    return total / members.clamp(min=1)


def _weigh(weights: Tensor, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """weights [B, H, c, m] times V: [B, H, c, E], in the dtype of value unless another is asked for."""
    batch, heads, rows, _ = weights.shape
    grouped = by_group(weights, value.shape[1])
    value_rows = value.to(weights.dtype)
    out = torch.matmul(grouped, value_rows) if asking.answers(value) else None
    if out is None or not bool(torch.isfinite(out).all()):
        out = _weigh_visible(grouped, value_rows)
    return out.view(batch, heads, rows, value.shape[-1]).to(dtype or value.dtype)


def _weigh_visible(weights: Tensor, value: Tensor) -> Tensor:
    """weights @ value where a zero weight hides even a NaN or infinite value (0 * NaN would be NaN)."""
    broken = ~torch.isfinite(value)
    out = torch.matmul(weights, value.masked_fill(broken, 0))
    reached = torch.matmul((weights != 0).to(value.dtype), broken.to(value.dtype)) > 0
    return out.masked_fill(reached, torch.nan)
