"""What was kept or computed, counted while the model runs: attention elements, rows, V rows, clusters, activations."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from .methods.chunk import RowCounts
from .methods.clustered import ClusterCounts
from .methods.top_k_feed_forward import ActivationCounts

# Shares are counted in this many equal steps of (0, 1]; percentiles are exact to one step. Kept per k goes to K_LIMIT.
STEPS = 1000
K_LIMIT = 10


def _steps() -> Tensor:
    return torch.zeros(STEPS + 1, dtype=torch.int64)


@dataclass
class ModuleMeter:
    """Counts of one module. `long` rows are those that see more keys than their k; only they can be sparse.

    long_budget: the keys that long rows may keep, summed: 1.0 kept per k is what calibration aims at. v_rows: value
    rows that decoding steps see, and need: the union over the query heads of a KV head. key_bytes, value_bytes: of
    these steps, in the cache's dtype. key_bytes_read: every key is read, because its score decides whether it is kept;
    where keys are read rounded to 8 bits first, these bytes and those of keys read in full. cluster_*: see
    ClusterCounts; activations: of a feed-forward layer. head_visible, head_kept: long_visible and long_kept of each
    query head. What a module's method does not have stays 0.
    """

    visible: int = 0
    kept: int = 0
    long_visible: int = 0
    long_kept: int = 0
    long_budget: int = 0
    rows: int = 0
    long_rows: int = 0
    fallback_rows: int = 0
    rescued_rows: int = 0
    v_rows: int = 0
    v_rows_kept: int = 0
    key_bytes: int = 0
    key_bytes_read: int = 0
    value_bytes: int = 0
    value_bytes_kept: int = 0
    cluster_scores: int = 0
    cluster_dense_scores: int = 0
    cluster_distances: int = 0
    activations: int = 0
    activations_kept: int = 0
    head_visible: list[int] = field(default_factory=list)
    head_kept: list[int] = field(default_factory=list)
    long_shares: Tensor = field(default_factory=_steps)
    long_per_k: Tensor = field(default_factory=_steps)
    v_shares: Tensor = field(default_factory=_steps)

    def add(
        self,
        counts: RowCounts,
        lengths: Tensor,
        rows_k: Tensor,
        counted: Tensor | None,
        steps: int,
        row_bytes: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Adds one call. lengths, rows_k: int64 [B or 1, H or 1, q]; counted: bool [B or 1, q], None counts every row.

        steps: how many of the last rows are decoding steps, so that V rows are worth counting. row_bytes: of a K row,
        a V row and a rounded key.
        """
        kept = counts.kept
        lengths = lengths.expand_as(kept)
        seen = lengths > 0
        if counted is not None:
            seen = seen & counted.unsqueeze(1)
        long = seen & (rows_k.expand_as(kept) < lengths)
        self.visible += int(lengths[seen].sum())
        self.kept += int(kept[seen].sum())
        self.rows += int(seen.sum())
        long_lengths, long_kept = lengths[long], kept[long]
        budget = rows_k.expand_as(kept)[long]
        self.long_budget += int(budget.sum())
        self.long_visible += int(long_lengths.sum())
        self.long_kept += int(long_kept.sum())
        self.long_rows += long_lengths.numel()
        self.head_visible = _added(self.head_visible, _by_head(lengths, long))
        self.head_kept = _added(self.head_kept, _by_head(kept, long))
        self.fallback_rows += int((counts.fallback & seen).sum())
        self.rescued_rows += int((counts.rescued & seen).sum())
        self.long_shares += _histogram(long_kept, long_lengths)
        self.long_per_k += _histogram(long_kept, budget * K_LIMIT)
        if steps and counts.v_rows is not None:
            k_rows = None if counts.k_rows is None else counts.k_rows[..., -steps:]
            v_rows, lengths, seen = (part[..., -steps:] for part in (counts.v_rows, lengths, seen))
            self._add_step_rows(k_rows, v_rows, lengths, seen, row_bytes)

    def _add_step_rows(
        self, k_rows: Tensor | None, v_rows: Tensor, lengths: Tensor, seen: Tensor, row_bytes: tuple[int, int, int]
    ) -> None:
        groups = v_rows.shape[1]
        seen = seen[:, :: seen.shape[1] // groups]
        lengths = lengths[:, :: lengths.shape[1] // groups]
        visible, kept = int(lengths[seen].sum()), int(v_rows[seen].sum())
        self.v_rows += visible
        self.v_rows_kept += kept
        self.key_bytes += visible * row_bytes[0]
        if k_rows is None:
            self.key_bytes_read += visible * row_bytes[0]
        else:
            self.key_bytes_read += visible * row_bytes[2] + int(k_rows[seen].sum()) * row_bytes[0]
        self.value_bytes += visible * row_bytes[1]
        self.value_bytes_kept += kept * row_bytes[1]
        self.v_shares += _histogram(v_rows[seen], lengths[seen])

    def merge(self, other: ModuleMeter) -> None:
        """Adds what another one counted."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, _added(mine, value) if isinstance(value, list) else mine + value)

    def to_dict(self) -> dict[str, Any]:
        """Every count that is not 0, ready for JSON; a histogram as {step: rows}."""
        counts = {name: _sparse(value) if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return {name: value for name, value in counts.items() if value}

    @classmethod
    def from_dict(cls, counts: dict[str, Any]) -> ModuleMeter:
        """The inverse of to_dict."""
        made = cls()
        for name, value in counts.items():
            setattr(made, name, _dense(value) if isinstance(value, dict) else value)
        return made

    @property
    def elements(self) -> int:
        """What the dense module has, of what its method counts: attention elements, scores or activations."""
        return self.visible + self.cluster_dense_scores + self.activations

    @property
    def heads(self) -> list[float | None] | None:
        """The kept share of each query head in long rows; None where there are none, or some were counted by a version
        that did not tell heads apart."""
        if not self.long_visible or sum(self.head_visible) != self.long_visible:
            return None
        return [_share(*counts) for counts in zip(self.head_kept, self.head_visible, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Shares and percentiles; None where nothing was counted."""
        return {
            "rows": self.rows,
            "kept_share": _share(self.kept, self.visible),
            "long_rows": self.long_rows,
            "kept_per_k": _share(self.long_kept, self.long_budget),
            "kept_per_k_p5": _percentile(self.long_per_k, 0.05, K_LIMIT),
            "kept_per_k_p95": _percentile(self.long_per_k, 0.95, K_LIMIT),
            "long_kept_share": _share(self.long_kept, self.long_visible),
            "long_kept_share_p5": _percentile(self.long_shares, 0.05),
            "long_kept_share_p95": _percentile(self.long_shares, 0.95),
            "rows_without_threshold": self.fallback_rows,
            "rows_saved_by_min_keep": self.rescued_rows,
            "decode_v_rows_share": _share(self.v_rows_kept, self.v_rows),
            "decode_v_rows_share_p5": _percentile(self.v_shares, 0.05),
            "decode_v_rows_share_p95": _percentile(self.v_shares, 0.95),
            "decode_kv_bytes_share": _share(
                self.key_bytes_read + self.value_bytes_kept, self.key_bytes + self.value_bytes
            ),
            "cluster_scores_share": _share(self.cluster_scores, self.cluster_dense_scores),
            "cluster_distances_share": _share(self.cluster_distances, self.cluster_dense_scores),
            "activations_kept_share": _share(self.activations_kept, self.activations),
        }


class Meter:
    """Counts for every patched module, by name.

    active: bool [B], set by whoever generates, False for sequences that have already ended; None counts all.
    last_rows_are_steps: so many last rows of a longer, unpadded pass count as the decoding steps that they equal, for
    whoever measures decoding without generating.
    """

    def __init__(self, *, last_rows_are_steps: int = 0) -> None:
        self.modules: dict[str, ModuleMeter] = {}
        self.active: Tensor | None = None
        self.last_rows_are_steps = last_rows_are_steps

    def add(
        self,
        name: str,
        counts: RowCounts,
        lengths: Tensor,
        rows_k: Tensor,
        counted: Tensor | None,
        row_bytes: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        """Adds one attention call of module `name` (see ModuleMeter.add); a single query is a decoding step."""
        if self.active is not None and self.active.shape[0] == counts.kept.shape[0]:
            active = self.active.to(counts.kept.device).unsqueeze(1)
            counted = active if counted is None else counted & active
        steps = self.last_rows_are_steps or int(counts.kept.shape[-1] == 1)
        self._module(name).add(counts, lengths, rows_k, counted, steps, row_bytes)

    def add_clusters(self, name: str, counts: ClusterCounts) -> None:
        """Adds one call of clustered attention in module `name`."""
        module = self._module(name)
        module.cluster_scores += counts.scores
        module.cluster_dense_scores += counts.dense_scores
        module.cluster_distances += counts.distances

    def add_activations(self, name: str, counts: ActivationCounts) -> None:
        """Adds one call of feed-forward layer `name`."""
        module = self._module(name)
        module.activations += counts.all
        module.activations_kept += counts.kept

    def _module(self, name: str) -> ModuleMeter:
        return self.modules.setdefault(name, ModuleMeter())

    def total(self) -> ModuleMeter:
        """All modules together: sums, so that long rows weigh by their length. Heads are not added up."""
        total = ModuleMeter()
        for module in self.modules.values():
            total.merge(module)
        total.head_visible, total.head_kept = [], []
        return total

    def merge(self, other: Meter) -> None:
        """Adds what another meter counted."""
        for name, module in other.modules.items():
            self._module(name).merge(module)

    def to_dict(self) -> dict[str, Any]:
        """The counts of each module, ready for JSON."""
        return {name: module.to_dict() for name, module in self.modules.items()}

    @classmethod
    def from_dict(cls, counts: dict[str, Any]) -> Meter:
        """The inverse of to_dict."""
        meter = cls()
        meter.modules = {name: ModuleMeter.from_dict(module) for name, module in counts.items()}
        return meter

    def summary(self) -> dict[str, Any]:
        """`{"total": ..., "modules": {name: ...}}`, ready for JSON."""
        return {
            "total": self.total().summary(),
            "modules": {
                name: {**module.summary(), "elements": module.elements, "heads": module.heads}
                for name, module in self.modules.items()
            },
        }


def _sparse(steps: Tensor) -> dict[str, int]:
    return {str(index): int(steps[index]) for index in steps.nonzero().flatten().tolist()}


def _dense(steps: dict[str, int]) -> Tensor:
    made = _steps()
    for index, rows in steps.items():
        made[int(index)] = rows
    return made


def _by_head(counts: Tensor, rows: Tensor) -> list[int]:
    """Counts [B, H, q] of the rows that are marked, summed per head."""
    found: list[int] = counts.masked_fill(~rows, 0).sum((0, 2)).tolist()
    return found


def _added(left: list[int], right: list[int]) -> list[int]:
    return [sum(pair) for pair in zip_longest(left, right, fillvalue=0)]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _histogram(part: Tensor, whole: Tensor) -> Tensor:
    steps = ((part * STEPS + whole - 1) // whole).clamp(0, STEPS)
    return torch.bincount(steps.cpu(), minlength=STEPS + 1)


def _percentile(steps: Tensor, fraction: float, limit: int = 1) -> float | None:
    """limit: what the last step stands for."""
    total = int(steps.sum())
    if not total:
        return None
    return int(torch.searchsorted(steps.cumsum(0), max(1, round(fraction * total)))) * limit / STEPS
