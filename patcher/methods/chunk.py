"""What one attention call works on, the part of it that a selection sees at a time, and what was chosen there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from . import asking
from .distance_bias import DistanceBias
from .rounded_keys import RoundedKeys
from .visibility import Visibility


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention call works on.

    query [B, H, q, D]; key [B, G, n, D]; value [B, G, n, E], with H a multiple of G (grouped-query attention).
    scale: factor on query . key. bias: [B or 1, H or 1, q, n], or by distance, added after scaling. softcap: c in
    c * tanh(score / c).
    sinks: [H], learned logits that take part in the softmax and carry no value. dropout: probability, on the weights.
    value_sum: [B, G, E], the sum of the visible value rows of a single query, where the caller keeps it and there is no
    dropout; V-mean compensation then reads no dropped value row. rounded: the keys rounded to 8 bits, where the caller
    keeps them; a kernel then reads few keys in full.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    visibility: Visibility
    scale: float = 1.0
    bias: Tensor | DistanceBias | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0
    value_sum: Tensor | None = None
    rounded: RoundedKeys | None = None


@dataclass(frozen=True)
class Chunk:
    """Scores of the queries start..stop against the keys low..high, as a selection sees them.

    scores: [B, H, c, m], float32 (float64 for float64 inputs), -inf where a row may not look.
    lengths: visible keys per row, int64 [B or 1, H or 1, c]. sinks, scale: as in AttentionInputs. rounded: like scores,
    those of rounded keys, where the denominator is theirs.
    """

    scores: Tensor
    lengths: Tensor
    visibility: Visibility
    start: int
    stop: int
    low: int
    high: int
    sinks: Tensor | None = None
    scale: float = 1.0
    rounded: Tensor | None = None

    @cached_property
    def visible(self) -> Tensor:
        """bool like scores: where a row may look."""
        return self.scores != -torch.inf

    @cached_property
    def row_max(self) -> Tensor:
        """The highest score of every row [B, H, c, 1]; 0 for a row that sees nothing."""
        highest = self.scores.amax(-1, keepdim=True)
        return highest.masked_fill(highest == -torch.inf, 0)

    @cached_property
    def log_sum(self) -> Tensor:
        """The logarithm of every row's softmax denominator [B, H, c, 1], sinks included; 0 for a row without keys."""
        if self.sinks is None:
            highest = self.weights.amax(-1, keepdim=True)
            return self.row_max - highest.masked_fill(highest == 0, 1).log()
        empty = self.scores.detach().amax(-1, keepdim=True) == -torch.inf
        total = self.scores.masked_fill(empty, 0).logsumexp(-1, keepdim=True)  # not of -inf alone: see softmax
        return torch.logaddexp(total, self.sinks.to(total.dtype).view(1, -1, 1, 1)).masked_fill(empty, 0)

    @cached_property
    def denominator(self) -> Tensor:
        """The log_sum that thresholds on weights compare with: of the rounded keys' scores, where there are such."""
        if self.rounded is None:
            return self.log_sum
        total = self.rounded.logsumexp(-1, keepdim=True)
        if self.sinks is not None:
            total = torch.logaddexp(total, self.sinks.to(total.dtype).view(1, -1, 1, 1))
        return total.masked_fill(self.lengths.unsqueeze(-1) == 0, 0)

    def rounded_mass(self, keep: Tensor) -> Tensor | None:
        """The sum [B, H, c] of exp(rounded key's score - row maximum) over dropped keys; None without rounded keys."""
        if self.rounded is None:
            return None
        return torch.where(keep, 0, (self.rounded - self.row_max).exp()).sum(-1)

    @cached_property
    def weights(self) -> Tensor:
        """The dense softmax [B, H, c, m], zeros for a row that sees nothing."""
        return softmax(self.scores, self.sinks)

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
    dropped_mass: from a chunk and `keep` to [B, H, c], an estimate of the sum of exp(score - row maximum) over dropped
    keys, NaN for rows where it is to be computed; None, as function or as its result, computes all of them.
    """

    keep: Tensor | None
    fallback: Tensor | None = None
    rescued: Tensor | None = None
    dropped_mass: Callable[[Chunk, Tensor], Tensor | None] | None = None


@dataclass(frozen=True)
class RowCounts:
    """What was kept. kept, fallback, rescued: per row, [B, H, q]. v_rows: the V rows that at least one query head of a
    KV head needs for a query, int64 [B, G, q]: what is read where a row is a decoding step. None where they were not
    counted: by a kernel that had more than one query, or more heads to a KV head than fit in a tile, or where the KV
    heads are not known. k_rows: of a decoding step, the keys that were read in full, where the others were read rounded
    to 8 bits; None where all were."""

    kept: Tensor
    fallback: Tensor
    rescued: Tensor
    v_rows: Tensor | None
    k_rows: Tensor | None = None


class Observer(Protocol):
    """Sees every chunk of scores while a method runs; calibration is one."""

    def __call__(self, chunk: Chunk) -> None: ...


Select = Callable[[Chunk], Selection]


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over keys, zeros for a row of -inf alone; `sinks` [H] join the denominator only."""
    if scores.shape[-1] == 0:
        return scores
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    empty = scores.detach().amax(-1, keepdim=True) == -torch.inf
    if asking.answers(empty) and not bool(empty.any()):
        return scores.softmax(-1)
    return scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)  # a row of -inf would have a NaN gradient
