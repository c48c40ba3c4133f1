"""How often the 95 % interval misses the truth, by simulation with a fixed seed and where possible exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hf_sparsify.evaluation.verdict.interval import Interval, interval
from scipy.stats import binom, binomtest, multinomial

POINTS = (-100.0, 100.0)
PARTIAL = np.array([20.0, 33.3, 50.0, 66.7, 100.0])  # how much F1 a question may gain or lose
DRAWS = 2000
DATA_SETS = 1000
Floats = np.ndarray
Generator = np.random.Generator
DataSet = tuple[Floats, Floats]  # values in points and group numbers, both of shape (questions,)


def of_points(values: Floats, groups: Floats) -> Interval:
    return interval(values.tolist(), groups.tolist(), support=POINTS, draws=DRAWS)


def passages(generator: Generator) -> Floats:
    """The passage of each of 258 questions on 60 passages, 1 to about 15 questions on each."""
    sizes = 1 + generator.multinomial(258 - 60, generator.dirichlet(np.full(60, 1.5)))
    return np.repeat(np.arange(60), sizes)


def simulate(make: Callable[[Generator], DataSet], truth: float, data_sets: int = DATA_SETS) -> tuple[int, int]:
    """In how many data sets the whole interval is above the true mean, and in how many below."""
    generator = np.random.default_rng(20250101)
    above = below = 0
    for _ in range(data_sets):
        found = of_points(*make(generator))
        above += found.low > truth
        below += found.high < truth
    return above, below


def at_most(misses: int, data_sets: int, rate: float) -> bool:
    """Whether so many misses go together with a true rate of at most `rate`."""
    return float(binomtest(misses, data_sets, rate, alternative="greater").pvalue) > 0.001


# coverage


def ups_and_downs(latent: Floats) -> Floats:
    """-100 for 12.5 % of the questions and +100 for as many, by where a standard normal number lies."""
    return np.where(latent < -1.15, -100.0, np.where(latent > 1.15, 100.0, 0.0))


def independent_partial(generator: Generator) -> DataSet:
    return ups_and_downs(generator.normal(size=200)) / 100 * generator.choice(PARTIAL, 200), np.arange(200)


def correlated(generator: Generator) -> DataSet:
    """Questions on a passage share most of what makes them flip."""
    groups = passages(generator)
    return ups_and_downs(0.8 * generator.normal(size=60)[groups] + 0.6 * generator.normal(size=258)), groups


def less_correlated(generator: Generator) -> DataSet:
    groups = passages(generator)
    latent = 0.5 * generator.normal(size=60)[groups] + np.sqrt(0.75) * generator.normal(size=258)
    return ups_and_downs(latent), groups


def test_coverage_without_groups() -> None:
    """Exactly, by adding up over the numbers of losses and gains: 12.5 % of 200 questions each."""
    misses = 0.0
    for lost in range(50):
        for gained in range(50):
            chance = float(multinomial.pmf([lost, gained, 200 - lost - gained], 200, [0.125, 0.125, 0.75]))
            if chance > 1e-5:  # 99.8 % of all
                values = [-100.0] * lost + [100.0] * gained + [0.0] * (200 - lost - gained)
                found = of_points(np.array(values), np.arange(200))
                misses += chance * (not found.low <= 0 <= found.high)
    assert 0.93 <= 1 - misses <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("make", [independent_partial, correlated, less_correlated])
def test_coverage(make: Callable[[Generator], DataSet]) -> None:
    above, below = simulate(make, 0.0, 2000)
    assert at_most(above + below, 2000, 0.07)
    assert at_most(2000 - above - below, 2000, 0.97)
    assert at_most(above, 2000, 0.025)
    assert at_most(below, 2000, 0.025)


def test_without_its_groups_the_interval_covers_too_little() -> None:
    def make(generator: Generator) -> DataSet:
        values, groups = less_correlated(generator)
        return values, np.arange(len(groups))

    above, below = simulate(make, 0.0)
    assert 0.83 <= 1 - (above + below) / DATA_SETS <= 0.91


# false PASS: the true mean is at the margin, and the whole interval above it


@pytest.mark.parametrize("count", [20, 50, 200])
def test_false_pass_with_losses_only_is_at_most_one_in_forty(count: int) -> None:
    """Exactly, by adding up over the number of losses."""
    lows = [
        interval([-100.0] * lost + [0.0] * (count - lost), [str(i) for i in range(count)], support=POINTS).low
        for lost in range(20)
    ]
    for margin in (1.0, 1.5, 2.0, 5.0):
        false_pass = sum(binom.pmf(lost, count, margin / 100) for lost in range(20) if lows[lost] > -margin)
        assert false_pass <= 0.026


def losses_and_gains(generator: Generator, count: int, margin: float) -> DataSet:
    chance = generator.random(count)
    lost, gained = chance < 0.05 + margin / 100, chance > 0.95
    return 100.0 * (gained.astype(float) - lost), np.arange(count)


def partial_losses(generator: Generator, count: int, margin: float) -> DataSet:
    lost = generator.random(count) < margin / PARTIAL.mean()
    return -generator.choice(PARTIAL, count) * lost, np.arange(count)


@pytest.mark.parametrize("make", [losses_and_gains, partial_losses])
@pytest.mark.parametrize("margin", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("count", [20, 50, 200])
def test_false_pass(make: Callable[[Generator, int, float], DataSet], count: int, margin: float) -> None:
    above, _ = simulate(lambda generator: make(generator, count, margin), -margin)
    assert at_most(above, DATA_SETS, 0.025)


def whole_passages(generator: Generator, margin: float) -> DataSet:
    """All the questions of a passage are lost together."""
    groups = passages(generator)
    return -100.0 * (generator.random(60) < margin / 100)[groups], groups


def half_passages(generator: Generator, margin: float) -> DataSet:
    groups = passages(generator)
    hit = (generator.random(60) < 2 * margin / 100)[groups]
    return -100.0 * (hit & (generator.random(258) < 0.5)), groups


def whole_passages_both_ways(generator: Generator, margin: float) -> DataSet:
    groups = passages(generator)
    chance = generator.random(60)
    flipped = np.where(chance < 0.03 + margin / 100, -100.0, np.where(chance > 0.97, 100.0, 0.0))
    return flipped[groups], groups


def single_questions(generator: Generator, margin: float) -> DataSet:
    return -100.0 * (generator.random(258) < margin / 100), passages(generator)


@pytest.mark.parametrize("make", [whole_passages, half_passages, whole_passages_both_ways, single_questions])
@pytest.mark.parametrize("margin", [2.0, 5.0])
def test_false_pass_with_groups(make: Callable[[Generator, float], DataSet], margin: float) -> None:
    above, _ = simulate(lambda generator: make(generator, margin), -margin)
    assert at_most(above, DATA_SETS, 0.025)
