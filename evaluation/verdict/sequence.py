"""Several verdicts in an order that was fixed before: each is tested at the full level until one does not pass.

Fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995, "Multiple comparisons in drug clinical trials and
preclinical assays"; Westfall and Krishen 2001, "Optimally weighted, fixed sequence and gatekeeper multiple testing
procedures"). Recipes from dense to sparse are such an order: once one does not pass, a sparser one is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .gate import INCONCLUSIVE, LEVEL, PASS, Verdict

NOT_TESTED = "NOT TESTED"


def fixed_sequences(chains: Sequence[Sequence[Verdict]], level: float = LEVEL) -> list[list[Verdict]]:
    """The verdicts of chains, each from dense to sparse, with the chance of any wrong PASS held at `level` in all.

    The level is split evenly between the chains. A PASS whose p is above its share becomes INCONCLUSIVE; what follows
    the first verdict of a chain that is no PASS becomes NOT TESTED, its interval as it was.
    """
    share = level / max(1, len(chains))
    return [_tested(chain, share, len(chains)) for chain in chains]


def _tested(chain: Sequence[Verdict], level: float, chains: int) -> list[Verdict]:
    tested: list[Verdict] = []
    stopped = False
    for verdict in chain:
        if stopped:
            reason = "a denser recipe of its chain did not pass, so this one was not tested"
            verdict = replace(verdict, decision=NOT_TESTED, needed=None, reason=reason)
        elif verdict.decision == PASS and verdict.p > level:
            reason = (
                f"passes on its own (p = {verdict.p:.2g}), but not as one of {chains} chains (more than {level:.2g})"
            )
            verdict = replace(verdict, decision=INCONCLUSIVE, reason=reason)
        stopped = stopped or verdict.decision != PASS
        tested.append(verdict)
    return tested
