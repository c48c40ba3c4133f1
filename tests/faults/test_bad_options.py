"""No value of an option, and no combination, ends in a traceback or in anything but a sentence about it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import bad_combinations
import bad_options
import pytest
from fault_drill import Case, Drill


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("numbers", bad_options.numbers()),
        ("huge numbers", bad_options.huge_numbers()),
        ("words", bad_options.choices()),
        ("combinations", bad_combinations.combinations()),
        ("several wrong options", bad_options.at_random(random.Random(1), 120)),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_options(kind: str, cases: Iterator[Case], drill: Drill) -> None:
    for case in cases:
        drill.check(kind, case)
