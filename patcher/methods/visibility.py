"""Which keys each query row may see.

Two forms. `RowRanges` holds one interval of keys per row and is all that padding, causality and a sliding window need:
its size is linear in length. `FullMask` holds a boolean per (query, key) and is for models that bring their own mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import asking


@dataclass(frozen=True)
class RowRanges:
    """Row i sees the keys `first[i] <= j < last[i]`.

    first, last: int64 [B or 1, q]; a row with first == last sees nothing.
    counted: bool [B or 1, q], False for padding queries, which are neither counted nor calibrated; None counts all.
    """

    first: Tensor
    last: Tensor
    counted: Tensor | None = None

    @staticmethod
    def all_keys(queries: int, keys: int, device: torch.device | str = "cpu") -> RowRanges:
        """Every row sees every key."""
        return RowRanges(
            torch.zeros(1, queries, dtype=torch.int64, device=device),
            torch.full((1, queries), keys, dtype=torch.int64, device=device),
        )

    @staticmethod
    def causal(queries: int, keys: int, device: torch.device | str = "cpu") -> RowRanges:
        """The last query sees every key, each earlier one a key less."""
        last = torch.arange(keys - queries + 1, keys + 1, device=device).unsqueeze(0)
        return RowRanges(torch.zeros_like(last), last)

    def to(self, device: torch.device) -> RowRanges:
        """The same on another device."""
        counted = None if self.counted is None else self.counted.to(device)
        return RowRanges(self.first.to(device), self.last.to(device), counted)

    def lengths(self) -> Tensor:
        """Visible keys per row, int64 [B or 1, 1, q]."""
        return (self.last - self.first).unsqueeze(1)

    def key_span(self, start: int, stop: int, keys: int) -> tuple[int, int]:
        """The smallest interval of `keys` keys that rows start..stop need; all of them where that cannot be asked."""
        if not asking.answers(self.first):
            return 0, keys
        first, last = self.first[:, start:stop], self.last[:, start:stop]
        empty = first >= last
        if bool(empty.all()):
            return 0, 0
        return int(first.masked_fill(empty, torch.iinfo(torch.int64).max).min()), int(last.masked_fill(empty, 0).max())

    def hidden(self, start: int, stop: int, low: int, high: int) -> Tensor | None:
        """bool [B or 1, 1, stop - start, high - low], True where a row may not look; None where all is known to be
        visible."""
        first, last = self.first[:, start:stop, None], self.last[:, start:stop, None]
        if asking.answers(first) and bool(((first <= low) & (last >= high)).all()):
            return None
        keys = torch.arange(low, high, device=first.device)
        return ((keys < first) | (keys >= last)).unsqueeze(1)

    def ranks(self, start: int, stop: int, low: int, high: int) -> Tensor:
        """A key's rank among those its row sees, int64 [B or 1, 1, stop - start, high - low]; undefined elsewhere."""
        keys = torch.arange(low, high, device=self.first.device)
        return (keys - self.first[:, start:stop, None]).unsqueeze(1)


@dataclass(frozen=True)
class FullMask:
    """Row i of head h sees key j where `visible[b, h, i, j]`: bool [B or 1, H or 1, q, n].

    known_hull: see hull, where somebody has it already.
    """

    visible: Tensor
    counted: Tensor | None = None
    known_hull: RowRanges | None = None

    def to(self, device: torch.device) -> FullMask:
        counted = None if self.counted is None else self.counted.to(device)
        return FullMask(
            self.visible.to(device), counted, None if self.known_hull is None else self.known_hull.to(device)
        )

    def hull(self) -> RowRanges:
        """The smallest interval of keys that holds all that the heads of a row see."""
        if self.known_hull is not None:
            return self.known_hull
        keys = self.visible.shape[-1]
        position = torch.arange(keys, device=self.visible.device)
        seen = self.visible.any(1)
        first = torch.where(seen, position, keys).amin(-1)
        last = torch.where(seen, position + 1, 0).amax(-1)
        return RowRanges(torch.minimum(first, last), last)

    def lengths(self) -> Tensor:
        """Visible keys per row, int64 [B or 1, H or 1, q]."""
        return self.visible.sum(-1, dtype=torch.int64)

    def key_span(self, start: int, stop: int, keys: int) -> tuple[int, int]:
        return 0, keys

    def hidden(self, start: int, stop: int, low: int, high: int) -> Tensor | None:
        return ~self.visible[:, :, start:stop, low:high]

    def ranks(self, start: int, stop: int, low: int, high: int) -> Tensor:
        return self.visible[:, :, start:stop, low:high].cumsum(-1) - 1


Visibility = RowRanges | FullMask
