"""Fixed sequences: hand cases, and by simulation how often anything passes that should not."""

from __future__ import annotations

import numpy as np
import pytest
from hf_sparsify.evaluation.verdict.gate import FAIL, INCONCLUSIVE, LEVEL, NOT_TESTED, PASS, Verdict
from hf_sparsify.evaluation.verdict.interval import Interval
from hf_sparsify.evaluation.verdict.sequence import chain_level, fixed_sequences
from scipy.stats import binom, binomtest

SWEEPS = 4000  # simulated ones
ITEMS = 200
MARGIN = 0.2


def verdict(decision: str, p: float) -> Verdict:
    return Verdict(decision, "at most 1.0 points", Interval(0, -1, 1), None, p, 90, "alone", True)


def decisions(chains: list[list[Verdict]], level: float = 0.025) -> list[list[str]]:
    return [[found.decision for found in chain] for chain in fixed_sequences(chains, level)]


GOOD, FAIR, OPEN, BAD = verdict(PASS, 0.001), verdict(PASS, 0.02), verdict(INCONCLUSIVE, 0.2), verdict(FAIL, 0.99)


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([], []),
        ([GOOD, FAIR, GOOD], [PASS, PASS, PASS]),
        ([GOOD, OPEN, GOOD], [PASS, INCONCLUSIVE, NOT_TESTED]),
        ([GOOD, BAD, BAD], [PASS, FAIL, NOT_TESTED]),
        ([OPEN, GOOD, BAD], [INCONCLUSIVE, NOT_TESTED, NOT_TESTED]),
    ],
)
def test_a_chain_stops_at_the_first_that_does_not_pass(chain: list[Verdict], expected: list[str]) -> None:
    assert decisions([chain]) == [expected]


def test_chains_share_the_level() -> None:
    assert chain_level(1) == 0.025
    assert chain_level(2) == 0.0125
    # 0.02 is enough alone and too much for one of two; the other chain is tested all the same.
    assert decisions([[GOOD, FAIR, GOOD]]) == [[PASS, PASS, PASS]]
    assert decisions([[GOOD, FAIR, GOOD], [GOOD, GOOD]]) == [[PASS, INCONCLUSIVE, NOT_TESTED], [PASS, PASS]]
    assert decisions([[FAIR], []]) == [[INCONCLUSIVE], []], "an empty chain keeps its share"


def test_the_border_belongs_to_pass() -> None:
    assert decisions([[verdict(PASS, 0.0125)], [verdict(PASS, 0.01251)]]) == [[PASS], [INCONCLUSIVE]]


def test_what_is_said_and_what_stays() -> None:
    (good, fair, last), _ = fixed_sequences([[GOOD, FAIR, OPEN], []])
    assert good == GOOD
    assert fair.reason == "passes on its own (p = 0.02), but not in one of 2 chains, each of which is tested at 0.0125"
    assert last.reason == "a denser setting of the same chain did not pass, so this one is not tested"
    assert (last.difference, last.p, last.needed) == (OPEN.difference, OPEN.p, None)


def simulated(generator: np.random.Generator, drops: list[float]) -> list[Verdict]:
    """The verdicts on settings that get so many of ITEMS answers wrong, with the exact p of "a drop of 20 or more"."""
    lost = generator.binomial(ITEMS, drops)
    values = [float(p) for p in binom.cdf(lost, ITEMS, MARGIN)]
    return [verdict(PASS if p <= LEVEL else INCONCLUSIVE, p) for p in values]


@pytest.mark.parametrize(
    "chains",
    [
        [[MARGIN] * 4],
        [[0.01, MARGIN, 0.25, 0.3], [0.1, 0.15, MARGIN, MARGIN], [MARGIN] * 4],
        [[MARGIN] * 5] * 6,
    ],
    ids=["all at the margin", "three chains", "thirty cells"],
)
def test_any_wrong_pass_is_rare(chains: list[list[float]]) -> None:
    """A true drop of 20 points or more is too much. Tested one by one, far more sweeps have a wrong PASS."""
    generator = np.random.default_rng(20250101)
    wrong = wrong_alone = 0
    for _ in range(SWEEPS):
        alone = [simulated(generator, drops) for drops in chains]
        wrong += any_wrong(fixed_sequences(alone), chains)
        wrong_alone += any_wrong(alone, chains)
    assert float(binomtest(wrong, SWEEPS, LEVEL, alternative="greater").pvalue) > 0.001
    assert wrong_alone > 2 * LEVEL * SWEEPS


def any_wrong(verdicts: list[list[Verdict]], chains: list[list[float]]) -> bool:
    return any(
        found.decision == PASS and drop >= MARGIN
        for chain, drops in zip(verdicts, chains, strict=True)
        for found, drop in zip(chain, drops, strict=True)
    )
