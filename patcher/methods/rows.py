"""Attention row by row: the part that top-k and top-theta share.

For a chunk of queries at a time: scale, add bias, soft-cap, mask, select, softmax, weigh. Only the selection differs
between methods. No (queries x keys) tensor is made for a whole sequence: memory beside the inputs is linear in length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .visibility import Visibility

# Scores of one chunk, in elements (4 MB in float32): measured faster than 4M and 16M with 2 MB of L2 per core.
CHUNK_ELEMENTS = 1024 * 1024


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention call works on.

    query [B, H, q, D]; key [B, G, n, D]; value [B, G, n, E], with H a multiple of G (grouped-query attention).
    scale: factor on query . key. bias: [B or 1, H or 1, q, n], added after scaling. softcap: c in c * tanh(score / c).
    sinks: [H], learned logits that take part in the softmax and carry no value. dropout: probability, on the weights.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    visibility: Visibility
    scale: float = 1.0
    bias: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class Chunk:
    """Scores of the queries start..stop against the keys low..high, as a selection sees them.

    scores: [B, H, c, m], float32 (float64 for float64 inputs), -inf where a row may not look.
    lengths: visible keys per row, int64 [B or 1, H or 1, c].
    """

    scores: Tensor
    lengths: Tensor
    visibility: Visibility
    start: int
    stop: int
    low: int
    high: int

    def ranks(self) -> Tensor:
        """A key's rank among the keys that its row sees (see Visibility.ranks)."""
        return self.visibility.ranks(self.start, self.stop, self.low, self.high)

    def counted(self) -> Tensor | None:
        """bool [B or 1, c], False for padding queries."""
        counted = self.visibility.counted
        return None if counted is None else counted[:, self.start : self.stop]


@dataclass(frozen=True)
class Selection:
    """What a method chose in a chunk.

    keep: bool like scores, or None to keep all that is visible. fallback: rows that had no threshold and used their own
    exact top-k. rescued: rows that min-keep saved from keeping fewer. Both bool [B, H, c], or None for no row at all.
    """

    keep: Tensor | None
    fallback: Tensor | None = None
    rescued: Tensor | None = None


@dataclass(frozen=True)
class RowCounts:
    """What was kept. kept, fallback, rescued: per row, [B, H, q]. v_rows: for one query, the V rows that at least one
    query head of a KV head needs, int64 [B, G]; else None."""

    kept: Tensor
    fallback: Tensor
    rescued: Tensor
    v_rows: Tensor | None


class Observer(Protocol):
    """Sees every chunk of scores while a method runs; calibration is one."""

    def __call__(self, chunk: Chunk) -> None: ...


Select = Callable[[Chunk], Selection]


def attend_rows(
    inputs: AttentionInputs,
    select: Select | None = None,
    *,
    count: bool = False,
    observer: Observer | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, RowCounts | None]:
    """Attention of inputs with the keys that `select` keeps (None: dense).

    Returns the output [B, H, q, E] in the dtype of value, and counts if asked. A row that sees nothing gives zeros.
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
        chunk = Chunk(
            _scores(inputs, start, stop, low, high), lengths[..., start:stop], inputs.visibility, start, stop, low, high
        )
        if observer is not None:
            observer(chunk)
        selection = Selection(None) if select is None or low == high else select(chunk)
        outputs.append(_weigh(inputs, chunk, selection.keep, inputs.value[:, :, low:high]))
        if count:
            counts.append(_count(chunk, selection, inputs.key.shape[1]))
    return torch.cat(outputs, 2), _join(counts) if count else None


def _scores(inputs: AttentionInputs, start: int, stop: int, low: int, high: int) -> Tensor:
    """Masked scores [B, H, c, m] of a chunk; K is not expanded for grouped queries."""
    query, key = inputs.query[:, :, start:stop], inputs.key[:, :, low:high]
    dtype = torch.promote_types(query.dtype, torch.float32)
    batch, heads, rows, width = query.shape
    groups = key.shape[1]
    grouped = query.to(dtype).reshape(batch, groups, heads // groups * rows, width)
    scores = torch.matmul(grouped, key.to(dtype).transpose(2, 3)).view(batch, heads, rows, high - low)
    scores = scores * inputs.scale
    if inputs.bias is not None:
        scores = scores + inputs.bias[:, :, start:stop, low:high]
    if inputs.softcap is not None:
        scores = torch.tanh(scores / inputs.softcap) * inputs.softcap
    hidden = inputs.visibility.hidden(start, stop, low, high)
    return scores if hidden is None else scores.masked_fill(hidden, -torch.inf)


def _weigh(inputs: AttentionInputs, chunk: Chunk, keep: Tensor | None, value: Tensor) -> Tensor:
    """Softmax over the kept scores, times V: [B, H, c, E]."""
    scores = chunk.scores if keep is None else chunk.scores.masked_fill(~keep, -torch.inf)
    weights = _softmax(scores, inputs.sinks)
    if inputs.dropout:
        weights = torch.nn.functional.dropout(weights, inputs.dropout)
    batch, heads, rows, width = weights.shape
    groups = value.shape[1]
    grouped = weights.view(batch, groups, heads // groups * rows, width)
    out = torch.matmul(grouped, value.to(weights.dtype))
    if not bool(torch.isfinite(out).all()):
        out = _weigh_visible(grouped, value.to(weights.dtype))
    return out.view(batch, heads, rows, value.shape[-1]).to(value.dtype)


def _weigh_visible(weights: Tensor, value: Tensor) -> Tensor:
    """weights @ value where a zero weight hides even a NaN or infinite value (0 * NaN would be NaN)."""
    broken = ~torch.isfinite(value)
    out = torch.matmul(weights, value.masked_fill(broken, 0))
    reached = torch.matmul((weights != 0).to(value.dtype), broken.to(value.dtype)) > 0
    return out.masked_fill(reached, torch.nan)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over keys, zeros for a row of -inf alone; `sinks` [H] join the denominator only."""
    if scores.shape[-1] == 0:
        return scores
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    empty = scores.amax(-1, keepdim=True) == -torch.inf
    return scores.softmax(-1).masked_fill(empty, 0)


def _count(chunk: Chunk, selection: Selection, groups: int) -> RowCounts:
    scores, keep = chunk.scores, selection.keep
    visible = scores != -torch.inf
    kept = visible if keep is None else keep & visible
    batch, heads, rows, width = scores.shape
    none = torch.zeros(batch, heads, rows, dtype=torch.bool, device=scores.device)
    v_rows = None
    if rows == 1:
        v_rows = kept.view(batch, groups, heads // groups, width).any(2).sum(-1)
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
        counts[0].v_rows if len(counts) == 1 else None,
    )
