"""From ratios to words."""

from __future__ import annotations

import pytest
from hf_sparsify.benchmark.break_even import break_even, rounded, sentence
from hf_sparsify.benchmark.timing import Spread


def test_break_even_lies_where_the_line_through_two_lengths_crosses_one() -> None:
    # In logarithms 1/2 and 2 are as far from 1, so the middle of 1,000 and 4,000 is 2,000.
    assert break_even([1000, 4000], [0.5, 2.0]) == pytest.approx(2000)
    assert break_even([1000, 4000], [0.25, 2.0]) == pytest.approx(1000 * 4 ** (2 / 3))


def test_the_last_crossing_counts() -> None:
    assert break_even([100, 200, 400, 800], [1.2, 0.5, 2.0, 3.0]) == pytest.approx(200 * 2**0.5)


def test_no_break_even_and_none_needed() -> None:
    assert break_even([100, 200], [2.0, 0.9]) is None
    assert break_even([100, 200], [1.0, 1.5]) == 0


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Spread(1.4, 1.3, 1.5), "1.40x: faster"),
        (Spread(0.7, 0.6, 0.8), "0.70x: no speed-up at this length"),
        (Spread(1.01, 0.95, 1.1), "1.01x: no difference that shows (0.95x to 1.10x)"),
    ],
)
def test_a_ratio_in_words(ratio: Spread, words: str) -> None:
    said = sentence("prefill", 4096, ratio, [512, 4096], 1912.3, 1.5)
    assert (
        said
        == f"prefill at 4,096 tokens: {words}; break-even about 1,900 tokens; a perfect kernel would give at most 1.50x"
    )


def test_what_is_not_known_is_not_said() -> None:
    ratio = Spread(0.7, 0.6, 0.8)
    assert "no break-even up to 4,096 tokens" in sentence("decode", 4096, ratio, [512, 4096], None, None)
    assert "not slower from 512 tokens" in sentence("decode", 4096, ratio, [512, 4096], 0.0, None)
    alone = sentence("forward", 512, ratio, [512], None, None)
    assert "break-even" not in alone
    assert "not known" in alone


def test_lengths_are_rounded_to_two_digits() -> None:
    assert [rounded(length) for length in (3.2, 87.6, 1949, 12345)] == [3, 88, 1900, 12000]
