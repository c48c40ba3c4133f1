"""Answers that were right before patching and wrong after, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import DataError


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """The two-sided p of the exact McNemar test (McNemar 1947): are flips equally likely both ways? 1.0 without flips.

    The test is for independent items; items on the same passage are not.
    """
    flips = right_to_wrong + wrong_to_right
    if flips == 0:
        return 1.0
    from scipy.stats import binomtest  # here because it takes a second to import

    return float(binomtest(right_to_wrong, flips, 0.5).pvalue)


@dataclass(frozen=True)
class Flips:
    """The ids of the items that flipped, in the order of the data, and the p of the exact McNemar test.

    `descriptive` means that some items share a group, so that the p only describes the counts.
    """

    right_to_wrong: tuple[str, ...]
    wrong_to_right: tuple[str, ...]
    p: float
    descriptive: bool

    @classmethod
    def between(
        cls, ids: Sequence[str], dense: Sequence[bool], patched: Sequence[bool], groups: Sequence[str]
    ) -> Flips:
        """Compare what the dense and the patched model got right; all have shape (items,).

        DataError if the lengths differ.
        """
        if not len(ids) == len(dense) == len(patched) == len(groups):
            raise DataError(f"{len(ids)} ids, {len(dense)} and {len(patched)} answers, {len(groups)} groups: no match")
        lost = tuple(i for i, was, now in zip(ids, dense, patched, strict=True) if was and not now)
        gained = tuple(i for i, was, now in zip(ids, dense, patched, strict=True) if now and not was)
        return cls(lost, gained, mcnemar(len(lost), len(gained)), len(set(groups)) < len(groups))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return asdict(self)
