"""From ratios at some lengths to what a person should know: is it faster here, from where on, and how much at most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .timing import Spread


def break_even(lengths: Sequence[int], ratios: Sequence[float]) -> float | None:
    """The length from which on patched is at least as fast as dense, interpolated between those that were measured.

    lengths: ascending. ratios: dense time / patched time. 0 if it is at every length; None if it is not at the longest.
    Between two lengths log ratio is taken as linear in log length.
    """
    if ratios[-1] < 1:
        return None
    slow = [index for index, ratio in enumerate(ratios) if ratio < 1]
    if not slow:
        return 0.0
    left = slow[-1]
    low, high = math.log(ratios[left]), math.log(ratios[left + 1])
    share = -low / (high - low)
    return math.exp((1 - share) * math.log(lengths[left]) + share * math.log(lengths[left + 1]))


def sentence(
    phase: str, length: int, ratio: Spread, lengths: Sequence[int], even: float | None, ceiling: float | None
) -> str:
    """One phase at one length, in words. lengths: all that were measured; even: see break_even."""
    times = f"{ratio.median:.2f}x"
    if ratio.low > 1:
        found = f"{times}: faster"
    elif ratio.high < 1:
        found = f"{times}: no speed-up at this length"
    else:
        found = f"{times}: no difference that shows ({ratio.low:.2f}x to {ratio.high:.2f}x)"
    parts = [found, *([_even_text(lengths, even)] if len(lengths) > 1 else []), _most(ceiling)]
    return f"{phase} at {length:,} tokens: {'; '.join(parts)}"


def _even_text(lengths: Sequence[int], even: float | None) -> str:
    if even is None:
        return f"no break-even up to {lengths[-1]:,} tokens"
    if even == 0:
        return f"not slower from {lengths[0]:,} tokens, the shortest measured, on"
    return f"break-even about {rounded(even):,} tokens"


def rounded(length: float) -> int:
    """Two digits of a length are more than an interpolation is worth."""
    digits = max(0, math.floor(math.log10(max(length, 1))) - 1)
    return round(length / 10**digits) * 10**digits


def _most(ceiling: float | None) -> str:
    if ceiling is None:
        return "what a perfect kernel would give is not known for this model's attention"
    return f"a perfect kernel would give at most {ceiling:.2f}x"
