"""Top-k and top-theta with compensation as they are defined: in Python floats, one row of one head at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hf_sparsify.patcher.methods import AttentionInputs, Chunk, FullMask, RowRanges, TopK, TopTheta, attend_rows
from hf_sparsify.patcher.methods.chunk import RowCounts, Selection
from tiny_models import highest, row_scores, visible_keys
from torch import Tensor

Scores = list[tuple[int, float]]
Sparse = TopK | TopTheta

# One threshold per head: some rows of tiny_models.attention_inputs keep more than two keys, some none.
THETA = {
    "pre-softmax": (0.25, 0.1, 0.4, 0.3),
    "max-relative": (-0.8, -0.5, -1.2, -0.3),
    "post-softmax": (-1.6, -1.2, -2.0, -0.9),
}
COMPENSATED: list[dict[str, str]] = [
    {},
    {"compensation": "sdc"},
    {"compensation": "sdc+vmc"},
    {"compensation": "sdc+vmc", "v_mean": "dropped"},
]
MOST_COMPENSATED = [fields for fields in COMPENSATED if "compensation" in fields]


class Table:
    """A threshold and a dropped mass for every head and row length; none for the lengths in `without`."""

    def __init__(self, theta: tuple[float, ...], *, dropped: float = 0.4, without: tuple[int, ...] = ()) -> None:
        self.theta, self.dropped, self.without = theta, dropped, without

    def at(self, head: int, length: int) -> float:
        return math.nan if length in self.without else self.theta[head] + 0.02 * length

    def dropped_at(self, head: int, length: int) -> float:
        return math.nan if length in self.without else self.dropped * (1 + head) + 0.1 * length

    def lookup(self, lengths: Tensor) -> Tensor:
        return self._every(lengths, self.at)

    def lookup_dropped(self, lengths: Tensor) -> Tensor:
        return self._every(lengths, self.dropped_at)

    def _every(self, lengths: Tensor, at: Callable[[int, int], float]) -> Tensor:
        heads = len(self.theta)
        rows = lengths.expand(-1, heads, -1).tolist()
        return torch.tensor([[[at(h, n) for n in row] for h, row in enumerate(batch)] for batch in rows])


def sparse_methods(**fields: Any) -> list[Sparse]:
    """Top-k and top-theta in every placement, with every denominator that it may have."""
    found: list[Sparse] = [TopK(k=2, **fields)]
    for placement, denominator in itertools.product(THETA, ("exact", "exp-threshold", "offline")):
        if denominator == "exact" or (placement != "post-softmax" and fields.get("compensation", "none") != "none"):
            found.append(TopTheta(k=2, placement=placement, denominator=denominator, **fields))
    return found


SHORT_ROWS_DENSE: dict[str, Any] = {"compensation": "sdc+vmc", "min_length": 4}
EVERY_METHOD = [method for fields in [*COMPENSATED, SHORT_ROWS_DENSE] for method in sparse_methods(**fields)]


def named(value: Any) -> str:
    """A short id of a parameter of a test."""
    if not isinstance(value, TopK | TopTheta):
        return str(value)
    parts = [value.name, value.compensation, "" if value.v_mean == "visible" else value.v_mean]
    parts += [f"dense below {value.min_length}"] if value.min_length else []
    if isinstance(value, TopTheta):
        parts += [value.placement]
    parts += ["" if value.denominator == "exact" else value.denominator]
    return " ".join(part for part in parts if part)


def table_for(method: Sparse, heads: int = 4, **fields: Any) -> Table | None:
    return Table(THETA[method.placement][:heads], **fields) if isinstance(method, TopTheta) else None


@dataclass
class Rows:
    """output [B, H, q, E]; kept bool [B, H, q, n]; counts only where the product made them."""

    output: Tensor
    kept: Tensor
    counts: RowCounts | None = None


def run(call: AttentionInputs, method: Sparse, table: Table | None = None, chunk_size: int | None = None) -> Rows:
    """What the product gives, with the mask that it chose."""
    kept = torch.zeros(*call.query.shape[:3], call.key.shape[2], dtype=torch.bool)

    def select(chunk: Chunk) -> Selection:
        chosen = method.select(chunk, table) if isinstance(method, TopTheta) else method.select(chunk)
        mask = chunk.visible if chosen.keep is None else chosen.keep
        kept[:, :, chunk.start : chunk.stop, chunk.low : chunk.high] = mask
        return chosen

    output, counts = attend_rows(
        call,
        select,
        count=True,
        chunk_size=chunk_size,
        compensation=method.compensation,
        v_mean=method.v_mean,
        denominator=method.denominator,
    )
    return Rows(output, kept, counts)


def row_by_row(call: AttentionInputs, method: Sparse, table: Table | None = None) -> Rows:
    """What the definitions give, in float64 whatever the inputs."""
    (batch, heads, queries, _), (groups, keys, width) = call.query.shape, call.value.shape[1:]
    visible = visible_keys(call.visibility, batch, heads, queries, keys).tolist()
    output = torch.zeros(batch, heads, queries, width, dtype=torch.float64)
    kept = torch.zeros(batch, heads, queries, keys, dtype=torch.bool)
    query, key, value = (part.double().tolist() for part in (call.query, call.key, call.value))
    for b, h, i in itertools.product(range(batch), range(heads), range(queries)):
        group = h * groups // heads
        row = row_scores(call, query[b][h][i], key[b][group], visible[b][h][i], (b, h, i))
        coarse = row
        if method.denominator == "rounded" and queries == 1:
            rounded = [rounded_key(k) for k in key[b][group]]
            coarse = row_scores(call, query[b][h][i], rounded, visible[b][h][i], (b, h, i))
        sink = None if call.sinks is None else float(call.sinks[h])
        for j, weight in _weights(row, coarse, sink, h, method, table, kept[b, h, i]).items():
            for e, x in enumerate(value[b][group][j]):
                output[b, h, i, e] += weight * x
    return Rows(output, kept)


def rounded_key(key: list[float]) -> list[float]:
    """A key as its 8-bit codes have it; steps and codes are those of float32."""
    narrow = np.array(key, dtype=np.float32)
    step = np.abs(narrow).max() / np.float32(127)
    return [float(step) * round(float(x / step)) for x in narrow] if step > 0 else [0.0] * len(key)


def _weights(
    row: Scores, coarse: Scores, sink: float | None, head: int, method: Sparse, table: Table | None, kept: Tensor
) -> dict[int, float]:
    """The weight of every value row, that of its mean spread over them; fills in what is kept. coarse: the scores that
    the denominator is of."""
    if not row:
        return {}
    top = max(score for _, score in row)
    mass_of = {j: math.exp(score - top) for j, score in coarse}
    of_sink = 0.0 if sink is None else math.exp(sink - top)
    level = {
        "pre-softmax": 0.0,
        "max-relative": top,
        "post-softmax": top + math.log(sum(mass_of.values()) + of_sink),
    }
    limit = math.nan
    if isinstance(method, TopTheta) and table is not None:
        limit = float(torch.tensor(table.at(head, len(row)))) + level[method.placement]
    chosen = _chosen(row, method, limit)
    for j in chosen:
        kept[j] = True
    mass = {j: math.exp(score - top) for j, score in row}
    own = sum(mass[j] for j in chosen)
    if method.compensation == "none":
        return {j: mass[j] / (own + of_sink) for j in chosen}
    lost = [j for j in mass if j not in chosen]
    missing = sum(mass_of[j] for j in lost)
    if lost and isinstance(method, TopTheta) and not math.isnan(limit) and table is not None:
        if method.denominator == "exp-threshold":
            missing = len(lost) * math.exp(min(0.0, limit - top))
        elif method.denominator == "offline":
            missing = float(torch.tensor(table.dropped_at(head, len(row))))
    total = own + of_sink + missing
    weights = {j: mass[j] / total for j in chosen}
    if method.compensation == "sdc+vmc":
        among = list(mass) if method.v_mean == "visible" else lost
        for j in among:
            weights[j] = weights.get(j, 0.0) + missing / total / len(among)
    return weights


def _chosen(row: Scores, method: Sparse, limit: float) -> set[int]:
    budget = method.k if method.k is not None else max(1, math.ceil(method.keep * len(row) - 1e-9))  # type: ignore[operator]
    if len(row) <= budget or len(row) < method.min_length:
        return {j for j, _ in row}
    first = min(method.protect_first, budget)
    recent = min(method.protect_recent, budget - first)
    sure = {j for j, _ in row[:first] + row[len(row) - recent :]}
    rest = [item for item in row if item[0] not in sure]
    if math.isnan(limit) or not isinstance(method, TopTheta):
        return sure | highest(budget - len(sure))(rest)
    chosen = sure | {j for j, score in rest if score > limit}
    return chosen if len(chosen) >= method.min_keep else sure | highest(method.min_keep - len(sure))(rest)


def part_of(call: AttentionInputs, start: int, stop: int, low: int = 0) -> AttentionInputs:
    """The queries start..stop with a cache that holds what came before them, from key `low` on."""
    high = stop if isinstance(call.visibility, RowRanges) else call.key.shape[2]
    seen = call.visibility
    if isinstance(seen, FullMask):
        seen = FullMask(seen.visible[:, :, start:stop])
    else:
        last = seen.last[:, start:stop].clamp(max=high)
        first = torch.minimum(seen.first[:, start:stop], last)
        assert bool((first[last > first] >= low).all()), "a key that a row sees is not in the cache"
        seen = RowRanges((first - low).clamp(min=0), (last - low).clamp(min=0))
    return replace(
        call,
        query=call.query[:, :, start:stop],
        key=call.key[:, :, low:high],
        value=call.value[:, :, low:high],
        bias=None if call.bias is None else call.bias[:, :, start:stop, low:high],
        visibility=seen,
    )
