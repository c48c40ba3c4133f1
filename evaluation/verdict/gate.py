"""Whether a patched model passes: is its score, measured on the same items, close enough to the dense model's?

This is a test of non-inferiority. To pass, the whole interval has to be on the good side of the margin; a drop that is
merely "not significant" does not pass, since with few items nothing is significant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...errors import DataError, UsageError
from .interval import Interval, Support, interval, items_needed, one_sided_p

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
NOT_TESTED = "NOT TESTED"  # see sequence.py
CONFIDENCE = 0.95
LEVEL = 0.025  # of the one-sided test; one tail of the interval


@dataclass(frozen=True)
class Gate:
    """What the patched model may lose.

    `max_drop` is in points, of 100: above 0, at most 100. `min_recovery`, if given, replaces it: the share of the dense
    model's score that has to remain, above 0, at most 1. UsageError for other values.
    """

    max_drop: float = 1.0
    min_recovery: float | None = None

    def __post_init__(self) -> None:
        # Written so that NaN is refused, too.
        if not 0 < self.max_drop <= 100:
            raise UsageError(f"--max-drop must be above 0 and at most 100 points, not {self.max_drop}")
        if self.min_recovery is not None and not 0 < self.min_recovery <= 1:
            raise UsageError(f"--min-recovery must be above 0 and at most 1, not {self.min_recovery}")

    @property
    def margin(self) -> str:
        """The demand in words."""
        if self.min_recovery is not None:
            return f"at least {_number(100 * self.min_recovery)} % of the dense score"
        return f"a drop of at most {_number(self.max_drop)} points"


@dataclass(frozen=True)
class Verdict:
    """A decision and what it rests on.

    `difference` is patched - dense in points, `recovery` is patched / dense as a share (None if dense scores 0), both
    with a 95 % interval. `p` is the one-sided p of "the patched model is worse than the margin allows", `p_holm` the
    same after `holm`. `needed` is about how many items in all would decide, if INCONCLUSIVE.
    """

    decision: str
    margin: str
    difference: Interval
    recovery: Interval | None
    p: float
    needed: int | None
    reason: str
    dense_above_chance: bool
    p_holm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return asdict(self)


def decide(
    dense: Sequence[float],
    patched: Sequence[float],
    groups: Sequence[str],
    gate: Gate,
    *,
    support: Support = (-100.0, 100.0),
    chance: float = 0.0,
    seed: int = 0,
) -> Verdict:
    """Hold the scores of the patched model against those of the dense one.

    Args:
        dense, patched: the score of each item, from 0 to 1, in the same order; shape (items,).
        groups: which items belong together, shape (items,).
        support: the least and the most that patched - dense can be for one item, in points.
        chance: the score of a guess. With `min_recovery` a dense model that is not above it makes the verdict
            INCONCLUSIVE: there is nothing to recover.

    DataError if the lengths differ, there is no item, or a score is not from 0 to 1.
    """
    if len(dense) != len(patched):
        raise DataError(f"{len(dense)} dense and {len(patched)} patched scores do not match")
    drops = [100 * (now - was) for was, now in zip(dense, patched, strict=True)]
    difference = interval(drops, groups, support=support, confidence=CONFIDENCE, seed=seed)
    alone = interval(dense, groups, support=(0, 1), confidence=CONFIDENCE, seed=seed)
    recovery = None
    if alone.value > 0:
        recovery = interval(patched, groups, support=(0, 1), per=dense, confidence=CONFIDENCE, seed=seed)
    above_chance = alone.low > chance

    def verdict(
        measured: Interval, values: Sequence[float], limit: float, bounds: Support, per: Sequence[float] | None
    ) -> Verdict:
        decision = PASS if measured.low > limit else FAIL if measured.high < limit else INCONCLUSIVE
        p = one_sided_p(values, groups, at_most=limit, support=bounds, per=per, seed=seed)
        needed = None
        if decision == INCONCLUSIVE:
            needed = items_needed(values, groups, margin=limit, support=bounds, per=per, seed=seed)
        explain = _explain_drop if per is None else _explain_recovery
        reason = explain(decision, measured, limit, needed)
        return Verdict(decision, gate.margin, difference, recovery, p, needed, reason, above_chance)

    if gate.min_recovery is None:
        return verdict(difference, drops, -gate.max_drop, support, None)
    if recovery is not None and above_chance:
        return verdict(recovery, patched, gate.min_recovery, (0, 1), dense)
    reason = (
        f"the dense model itself is not clearly above chance, {_number(100 * chance)} points (95 % interval "
        f"{_points(100 * alone.low)} to {_points(100 * alone.high)}), so there is nothing to recover"
    )
    return Verdict(INCONCLUSIVE, gate.margin, difference, recovery, 1.0, None, reason, above_chance)


def holm(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts on several recipes, with the chance of any wrong PASS held at 2.5 % in all.

    Holm's step-down adjustment (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure") of the one-sided
    p. A PASS that does not survive it becomes INCONCLUSIVE; the other decisions stay. The order stays, too.
    """
    adjusted = list(verdicts)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(verdicts)), key=lambda index: verdicts[index].p)):
        verdict = verdicts[index]
        largest = max(largest, min(1.0, (len(verdicts) - rank) * verdict.p))
        adjusted[index] = replace(verdict, p_holm=largest)
        if verdict.decision == PASS and largest > LEVEL:
            reason = (
                f"passes on its own (p = {verdict.p:.2g}), but not as one of {len(verdicts)} verdicts "
                f"(Holm's p = {largest:.2g}, more than {LEVEL})"
            )
            adjusted[index] = replace(adjusted[index], decision=INCONCLUSIVE, reason=reason)
    return adjusted


def _explain_drop(decision: str, difference: Interval, limit: float, needed: int | None) -> str:
    low, high, allowed = difference.low, difference.high, _number(-limit)
    between = f"(95 % interval {_signed(low)} to {_signed(high)})"
    if decision == PASS:
        return f"the drop is at most {_points(max(0.0, -low))} points {between}, within the {allowed} allowed"
    if decision == FAIL:
        return f"the drop is at least {_points(-high)} points {between}, more than the {allowed} allowed"
    return (
        f"the drop may be more or less than the {allowed} points allowed {between}, up to {_points(-low)}; "
        f"{_outlook(needed)}"
    )


def _explain_recovery(decision: str, recovery: Interval, limit: float, needed: int | None) -> str:
    low, high, asked = 100 * recovery.low, 100 * recovery.high, _number(100 * limit)
    between = f"(95 % interval {_points(low)} to {_points(high)})"
    if decision == PASS:
        return f"at least {_points(low)} % of the dense score remains {between}, no less than the {asked} asked for"
    if decision == FAIL:
        return f"at most {_points(high)} % of the dense score remains {between}, less than the {asked} asked for"
    return f"what remains of the dense score may be more or less than the {asked} % asked for {between}; " + _outlook(
        needed
    )


def _outlook(needed: int | None) -> str:
    return f"about {needed} items in all would decide" if needed else "more items are unlikely to decide"


def _points(number: float) -> str:
    return f"{abs(number) if round(number, 1) == 0 else number:.1f}"  # no "-0.0"


def _signed(number: float) -> str:
    return f"{0.0 if round(number, 1) == 0 else number:+.1f}"


def _number(number: float) -> str:
    """A number that a person chose: with one decimal, or as many more as it has."""
    return f"{number:.1f}" if round(number, 1) == number else f"{number:g}"
