"""Attention row by row: the part that top-k and top-theta share.

For a chunk of queries at a time: scale, add bias, soft-cap, mask, select, softmax, weigh. Only the selection differs
between methods. No (queries x keys) tensor is made for a whole sequence: memory beside the inputs is linear in length,
in training too (see row_gradients.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import asking
from .chunk import AttentionInputs, Chunk, Observer, RowCounts, Select, Selection
from .dropout import draw_seed
from .rounded_keys import rounded
from .row_chunk import Span, chunk_of, output_of, scores_of
from .row_gradients import Watch, attend_with_gradients, needs_gradients

# Scores of one chunk, in elements (4 MB in float32): measured faster than 4M and 16M with 2 MB of L2 per core.
CHUNK_ELEMENTS = 1024 * 1024
# Where launching work takes longer than a small chunk does (128 MB in float32).
DEVICE_CHUNK_ELEMENTS = 32 * CHUNK_ELEMENTS


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
    rounded keys too, unless a gradient is needed. chunk_size: queries at a time. Returns the output [B, H, q, E] in the
    dtype of value, and counts if asked. A row that sees nothing gives zeros. Autocast does not reach the scores.
    """
    if chunk_size is None:
        batch, heads = inputs.query.shape[:2]
        elements = CHUNK_ELEMENTS if asking.answers(inputs.query) else DEVICE_CHUNK_ELEMENTS
        chunk_size = max(1, elements // max(1, batch * heads * inputs.key.shape[2]))
    seed = draw_seed() if inputs.dropout else None
    work = RowWork(chunk_size, select, observer, compensation, v_mean, denominator, seed)
    groups, counts = inputs.key.shape[1], []

    def watch(chunk: Chunk, selection: Selection) -> None:
        if count:
            counts.append(count_kept(chunk, selection, groups))

    with torch.autocast(inputs.query.device.type, enabled=False):
        if needs_gradients(inputs):
            out = attend_with_gradients(inputs, replace(work, denominator="exact"), watch)
        else:
            out = work.attend(inputs, watch)
    return out, _join(counts) if count else None


@dataclass(frozen=True)
class RowWork:
    """What is done with the rows of a call, as in attend_rows. seed: of dropout, None without."""

    chunk_size: int
    select: Select | None
    observer: Observer | None
    compensation: str
    v_mean: str
    denominator: str
    seed: int | None

    def attend(self, inputs: AttentionInputs, watch: Watch) -> Tensor:
        """The output [B, H, q, E]. watch: is told of every chunk, and of what was chosen there."""
        value, (batch, heads, queries, _) = inputs.value, inputs.query.shape
        # As the caller wants it: rows of all heads side by side.
        out = value.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
        generator, lengths = self.generator(value.device), inputs.visibility.lengths()
        for start in range(0, max(1, queries), self.chunk_size):
            stop = min(start + self.chunk_size, queries)
            out[:, :, start:stop] = self._attend_chunk(inputs, lengths, start, stop, generator, watch)
        return out

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The generator of dropout masks, as it is before the first chunk."""
        return None if self.seed is None else torch.Generator(device).manual_seed(self.seed)

    def _attend_chunk(
        self,
        inputs: AttentionInputs,
        lengths: Tensor,
        start: int,
        stop: int,
        generator: torch.Generator | None,
        watch: Watch,
    ) -> Tensor:
        """The output rows start..stop."""
        span = Span(start, stop, *inputs.visibility.key_span(start, stop, inputs.key.shape[2]))
        key, coarse = inputs.key[:, :, span.low : span.high], None
        if self.denominator == "rounded" and inputs.query.shape[2] == 1:
            coarse = scores_of(inputs, span, rounded(key))
        hidden = inputs.visibility.hidden(*span)
        chunk = chunk_of(inputs, span, scores_of(inputs, span, key), hidden, lengths, coarse)
        if self.observer is not None:
            self.observer(chunk)
        nothing = start == stop or span.low == span.high
        selection = Selection(None) if self.select is None or nothing else self.select(chunk)
        watch(chunk, selection)
        return output_of(inputs, chunk, selection, self.compensation, self.v_mean, generator)


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
