"""Verdicts on several settings in an order that was fixed before: from the one that loses least to the one that may
lose most.

Fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995, "Multiple comparisons in drug clinical trials and
preclinical assays: a-priori ordered hypotheses"; Westfall and Krishen 2001, "Optimally weighted, fixed sequence and
gatekeeper multiple testing procedures"): each setting of a chain is tested at the chain's whole level, and after the
first that does not pass none is tested. For any wrong PASS the first setting of a chain that is not good enough has to
pass, and that is one test. Between chains the level is split evenly (Bonferroni), so the chance of any wrong PASS in
all chains together is at most the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .gate import INCONCLUSIVE, LEVEL, NOT_TESTED, PASS, Verdict


def chain_level(chains: int, level: float = LEVEL) -> float:
    """The one-sided level of each of so many chains."""
    return level / max(1, chains)


def fixed_sequences(chains: Sequence[Sequence[Verdict]], level: float = LEVEL) -> list[list[Verdict]]:
    """The verdicts of each chain, in their order, with the chance of any wrong PASS in all of them at most `level`.

    A PASS whose p is above the chain's level becomes INCONCLUSIVE; what comes after the first that is no PASS is NOT
    TESTED. FAIL stays. level: one-sided. The order must not follow from the data. A setting that could not be run may
    be left out of its chain; an empty chain has its share of the level all the same.
    """
    share = chain_level(len(chains), level)
    return [_sequence(chain, share, len(chains)) for chain in chains]


def _sequence(chain: Sequence[Verdict], level: float, chains: int) -> list[Verdict]:
    tested: list[Verdict] = []
    for verdict in chain:
        if tested and tested[-1].decision != PASS:
            reason = "a denser setting of the same chain did not pass, so this one is not tested"
            verdict = replace(verdict, decision=NOT_TESTED, needed=None, reason=reason)
        elif verdict.decision == PASS and verdict.p > level:
            reason = (
                f"passes on its own (p = {verdict.p:.2g}), but not in one of {chains} chains, each of which is tested "
                f"at {level:.3g}"
            )
            verdict = replace(verdict, decision=INCONCLUSIVE, reason=reason)
        tested.append(verdict)
    return tested
