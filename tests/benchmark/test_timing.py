"""Spreads, interleaving and paired ratios, with a clock that the arms move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hf_sparsify.benchmark.timing import Spread, interleaved, ratios


class Clock:
    """Moves only when an arm runs; remembers who ran."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def arm(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds
            self.ran.append(name)

        return run

    def arms(self, **seconds: float) -> dict[str, Callable[[], None]]:
        return {name: self.arm(name, each) for name, each in seconds.items()}


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        Spread.of([])


def test_seconds_of_every_arm_and_round() -> None:
    clock = Clock()
    times = interleaved(clock.arms(dense=2.0, sparse=0.5), rounds=3, clock=clock)
    assert times == {"dense": [2.0] * 3, "sparse": [0.5] * 3}
    assert clock.ran.count("dense") == clock.ran.count("sparse") == 4  # one round warms up


def test_inner_calls_are_divided_out() -> None:
    clock = Clock()
    assert interleaved(clock.arms(a=2.0), rounds=2, clock=clock, warm_up=0, inner=5) == {"a": [2.0, 2.0]}
    assert len(clock.ran) == 10


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_arm_always_runs_behind_the_same_other(count: int) -> None:
    clock = Clock()
    names = [f"arm {i}" for i in range(count)]
    interleaved({name: clock.arm(name, 1.0) for name in names}, rounds=4 * count, clock=clock, warm_up=0)
    rounds = [clock.ran[i : i + count] for i in range(0, len(clock.ran), count)]
    assert all(sorted(each) == sorted(names) for each in rounds)
    assert {each[0] for each in rounds} == set(names)
    for name in names:
        before = {clock.ran[i - 1] for i in range(1, len(clock.ran)) if clock.ran[i] == name} - {name}
        assert len(before) >= min(2, count - 1)


def test_each_arm_is_first_equally_often() -> None:
    clock = Clock()
    interleaved(clock.arms(a=1.0, b=1.0, c=1.0), rounds=6, clock=clock, warm_up=0)
    firsts = clock.ran[::3]
    assert {name: firsts.count(name) for name in "abc"} == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"rounds": 1, "warm_up": -1}, {"rounds": 1, "inner": 0}])
def test_counts_that_make_no_rounds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        interleaved({"a": lambda: None}, **wrong)


def test_no_arms_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one arm"):
        interleaved({}, rounds=1)


def test_ratios_are_paired() -> None:
    """A round that is slow for both says nothing: the medians of the sides alone would give 3 here."""
    assert ratios([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]).median == 2.0
    assert ratios([2.0, 3.0, 8.0], [1.0, 1.0, 2.0]) == Spread(3.0, 2.5, 3.5)


def test_ratios_of_different_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 rounds"):
        ratios([1.0, 2.0], [1.0])
