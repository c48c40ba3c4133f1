"""The interval for grouped bounded values: closed forms and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.verdict.interval import GroupedValues, Interval, interval, items_needed, one_sided_p
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

POINTS = (-100.0, 100.0)
DRAWS = 2000
Floats = np.ndarray


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def of_points(values: Floats, groups: Floats | None = None, **options: object) -> Interval:
    names = alone(len(values)) if groups is None else [str(g) for g in groups]
    return interval(values.tolist(), names, support=POINTS, draws=DRAWS, **options)  # type: ignore[arg-type]


# closed forms


@pytest.mark.parametrize(
    ("right", "count"), [(1, 1), (0, 1), (0, 50), (1, 50), (7, 50), (50, 50), (3, 200), (150, 200)]
)
def test_zeros_and_ones_give_clopper_pearson(right: int, count: int) -> None:
    exact = binomtest(right, count).proportion_ci(0.95, "exact")
    found = interval([1.0] * right + [0.0] * (count - right), alone(count), support=(0, 1), draws=100_000)
    # What the bounds have to match is the tail probability; its Monte-Carlo error is 0.0005.
    if right > 0:
        assert beta.cdf(found.low, right, count - right + 1) == pytest.approx(0.025, abs=0.002)
    if right < count:
        assert beta.sf(found.high, right + 1, count - right) == pytest.approx(0.025, abs=0.002)
    assert found.value == right / count
    assert found.low == pytest.approx(exact.low, abs=0.003)
    assert found.high == pytest.approx(exact.high, abs=0.003)


def test_losses_only_give_clopper_pearson_on_the_side_of_the_losses() -> None:
    found = interval([-100.0] * 3 + [0.0] * 97, alone(100), support=POINTS, draws=100_000)
    assert -found.low == pytest.approx(100 * binomtest(3, 100).proportion_ci(0.95, "exact").high, abs=0.15)


def test_p_is_the_exact_binomial_test() -> None:
    values = [-1.0] * 2 + [0.0] * 198
    p = one_sided_p(values, alone(200), at_most=-0.03, support=(-1, 1), draws=100_000)
    assert p == pytest.approx(binom.cdf(2, 200, 0.03), abs=0.002)


def test_no_flip_in_50_decides_neither_1_nor_2_points() -> None:
    found = interval([0.0] * 50, alone(50), support=POINTS)
    assert found.low == pytest.approx(-100 * (1 - 0.025 ** (1 / 50)), rel=0.03)  # 7.1 points
    assert found.high == pytest.approx(-found.low)
    assert 350 <= items_needed([0.0] * 50, alone(50), margin=-1.0, support=POINTS) <= 390  # exactly 368
    assert 170 <= items_needed([0.0] * 50, alone(50), margin=-2.0, support=POINTS) <= 200  # exactly 183


def test_a_single_item_tells_next_to_nothing() -> None:
    found = interval([0.0], ["a"], support=POINTS)
    assert found.value == 0
    assert found.low == pytest.approx(-97.5, abs=0.5)
    assert found.high == pytest.approx(97.5, abs=0.5)


def test_all_at_a_bound() -> None:
    found = interval([-100.0] * 30, ["a", "b"] * 15, support=POINTS)
    assert found.value == -100
    assert found.low == pytest.approx(-100)
    assert found.high > -100


def test_unbounded_values_imagine_no_item() -> None:
    constant = interval([3.0] * 20, alone(20), support=None)
    assert (constant.low, constant.high) == pytest.approx((3.0, 3.0))
    values = np.random.default_rng(0).normal(size=400)
    found = interval(values.tolist(), alone(400), support=None)
    assert found.low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.01)
    assert found.high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.01)


def test_ratio_of_sums() -> None:
    patched, dense = [1.0] * 90 + [0.0] * 10, [1.0] * 100
    as_mean = interval(patched, alone(100), support=(0, 1))
    as_ratio = interval(patched, alone(100), support=(0, 1), per=dense)
    assert as_ratio.value == 0.9
    assert as_ratio.low == as_mean.low  # the worst item is 0 of 1 in both
    assert as_ratio.high > as_mean.high  # the best is 1 of 0 here
    same = interval(patched, alone(100), support=(0, 1), per=patched)
    assert same.low < same.value == 1.0 < same.high


@pytest.mark.parametrize("share", [0.8, 0.87, 0.95])
def test_ratio_asks_the_same_as_the_mean_of_what_is_left(share: float) -> None:
    generator = np.random.default_rng(3)
    dense = (generator.random(200) < 0.7).astype(float)
    patched = dense * (generator.random(200) < 0.9)
    as_ratio = one_sided_p(patched.tolist(), alone(200), at_most=share, support=(0, 1), per=dense.tolist())
    left = (patched - share * dense).tolist()
    as_mean = one_sided_p(left, alone(200), at_most=0.0, support=(-share, 1))
    assert as_ratio == pytest.approx(as_mean, abs=0.01)


# groups


def test_identical_groups_are_one_row() -> None:
    data = GroupedValues.of([0, 1, 1, 0, 1], ["a", "a", "b", "b", "c"])
    assert data.sums.tolist() == [1, 1]
    assert sorted(data.sizes.tolist()) == [1, 2]
    assert dict(zip(data.sizes, data.multiplicities, strict=True)) == {1: 1, 2: 2}
    assert data.items == 5
    assert data.value == 0.6


def test_groups_without_a_flip_count_as_one_item_each() -> None:
    """Nothing tells that questions on a passage flip apart, so 60 passages are 60 cases, however many questions."""
    found = interval([0.0] * 240, [str(i // 4) for i in range(240)], support=POINTS)
    assert found.low == pytest.approx(-100 * (1 - 0.025 ** (1 / 60)), rel=0.03)


def test_flips_spread_over_groups_narrow_the_interval_to_that_of_single_items() -> None:
    values = np.random.default_rng(0).permutation([-100.0] * 60 + [0.0] * 340)
    grouped, single = of_points(values, np.arange(400) // 4), of_points(values)
    assert grouped.high - grouped.low < 1.1 * (single.high - single.low)


def test_groups_that_flip_as_a_whole_widen_the_interval() -> None:
    values = np.zeros(400)
    values[:60] = -100.0
    grouped, single = of_points(values, np.arange(400) // 4), of_points(values)
    assert grouped.high - grouped.low > 1.7 * (single.high - single.low)


# properties

SCORES = st.lists(st.tuples(st.sampled_from([-100.0, -33.3, 0.0, 20.0, 100.0]), st.integers(0, 6)), min_size=1)


@settings(max_examples=50, deadline=None)
@given(SCORES, st.randoms(use_true_random=False))
def test_order_and_names_of_groups_do_not_matter(items: list[tuple[float, int]], random: object) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = of_points(np.array([v for v, _ in items]), np.array([g for _, g in items]))
    again = of_points(np.array([v for v, _ in shuffled]), np.array([f"{99 - g}" for _, g in shuffled]))
    assert first == again


@settings(max_examples=50, deadline=None)
@given(SCORES)
def test_the_interval_holds_the_mean_and_stays_within_the_support(items: list[tuple[float, int]]) -> None:
    values, groups = np.array([v for v, _ in items]), np.array([g for _, g in items])
    found = of_points(values, groups)
    assert found.value == pytest.approx(values.mean())
    assert -100 - 1e-9 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 100 + 1e-9


@settings(max_examples=50, deadline=None)
@given(SCORES)
def test_mirrored_values_mirror_the_interval(items: list[tuple[float, int]]) -> None:
    values, groups = np.array([v for v, _ in items]), np.array([g for _, g in items])
    one, other = of_points(values, groups), of_points(-values, groups)
    width = max(one.high - one.low, 1e-9)  # only the order of the rows differs, so only the noise does
    assert abs(one.low + other.high) < 0.15 * width


@settings(max_examples=50, deadline=None)
@given(SCORES, st.floats(-100, 100))
def test_p_and_bound_agree(items: list[tuple[float, int]], limit: float) -> None:
    values, groups = [v for v, _ in items], [str(g) for _, g in items]
    p = one_sided_p(values, groups, at_most=limit, support=POINTS, draws=DRAWS)
    assert (p <= 0.025) == (interval(values, groups, support=POINTS, draws=DRAWS).low > limit)


def test_more_confidence_is_wider() -> None:
    values = np.random.default_rng(0).choice([-100.0, 0.0, 100.0], 100)
    assert of_points(values, confidence=0.99).low < of_points(values, confidence=0.9).low


def test_deterministic_and_without_the_global_generator() -> None:
    values = np.random.default_rng(0).choice([-100.0, 0.0, 100.0], 100)
    np.random.seed(1)
    first, state = of_points(values), np.random.get_state()[1].tolist()
    np.random.seed(2)
    assert of_points(values) == first
    assert of_points(values, seed=1) != first
    np.random.seed(1)
    assert np.random.get_state()[1].tolist() == state


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = of_points(values)
    monkeypatch.setattr("hf_sparsify.evaluation.verdict.interval.CHUNK_VALUES", 1700)
    assert of_points(values).low == pytest.approx(whole.low, abs=1e-12)


# how many items


def test_items_needed_is_what_then_decides() -> None:
    values = [-100.0] * 2 + [100.0] * 1 + [0.0] * 97
    needed = items_needed(values, alone(100), margin=-3.0, support=POINTS)
    assert needed is not None
    assert needed % 10 == 0
    times = needed // 100
    assert interval(values * (times + 1), alone(100 * (times + 1)), support=POINTS).low > -3
    assert interval(values * (times - 1), alone(100 * (times - 1)), support=POINTS).low < -3


def test_items_needed_below_the_margin_and_never() -> None:
    values = [-100.0] * 4 + [0.0] * 96
    assert items_needed(values, alone(100), margin=-4.0, support=POINTS) is None  # the mean itself
    assert items_needed(values, alone(100), margin=-4.001, support=POINTS) is None  # more than 1000 times as many
    assert items_needed(values, alone(100), margin=-1.0, support=POINTS) is not None
    assert items_needed(values, alone(100), margin=-50.0, support=POINTS) == 100  # these will do


def test_refusals() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        interval([], [], support=POINTS)
    with pytest.raises(DataError, match="do not match"):
        interval([1.0], ["a", "b"], support=POINTS)
    with pytest.raises(DataError, match="from 0 to 1"):
        interval([1.1], ["a"], support=(0, 1))
    with pytest.raises(DataError, match="finite"):
        interval([float("nan")], ["a"], support=(0, 1))
    with pytest.raises(DataError, match="add up to 0"):
        interval([0.5], ["a"], support=(0, 1), per=[0.0])
    with pytest.raises(DataError, match="compare with"):
        interval([0.5], ["a"], support=(0, 1), per=[2.0])
