"""Times of things that do the same work in different ways, taken so that they can be compared on a machine that is
never quite quiet: one round times each once, close together, and what is reported is over the rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some values and their quartiles, in the unit of the values."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """ValueError without values. One value is its own quartiles."""
        if not values:
            raise ValueError("a spread needs at least one value")
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, low, high)


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 1,
    inner: int = 1,
) -> dict[str, list[float]]:
    """Seconds of one call, by arm and round; every round times each arm once.

    The order rotates from round to round, and turns around every time that it has gone once through all arms, so that
    no arm always runs behind the same other one. clock: time.process_time counts the work of all threads and not the
    waiting for a busy machine. warm_up: rounds before the first that counts. inner: calls per timing, for what is too
    short for the clock; the mean of them is kept. Raises ValueError without arms and for counts that make no rounds.
    """
    if not arms or rounds < 1 or warm_up < 0 or inner < 1:
        raise ValueError("needs at least one arm, one round and one inner call, and no negative warm-up")
    times: dict[str, list[float]] = {name: [] for name in arms}
    for index in range(-warm_up, rounds):
        for name in order(list(arms), index):
            run = arms[name]
            start = clock()
            for _ in range(inner):
                run()
            spent = (clock() - start) / inner
            if index >= 0:
                times[name].append(spent)
    return times


def order(names: list[str], index: int) -> list[str]:
    """The order of round `index`; see interleaved."""
    cycle, first = divmod(index, len(names))
    turned = names[first:] + names[:first]
    return turned if cycle % 2 == 0 else turned[::-1]


def ratios(dense: Sequence[float], other: Sequence[float]) -> Spread:
    """dense / other, round by round: above 1 the other is faster. ValueError where they are not of the same rounds."""
    if len(dense) != len(other):
        raise ValueError(f"{len(dense)} and {len(other)} rounds cannot be paired")
    return Spread.of([d / o for d, o in zip(dense, other, strict=True)])
