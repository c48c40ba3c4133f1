"""The decision: PASS, FAIL or INCONCLUSIVE, the reason for it, and Holm's adjustment over several recipes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation.verdict.gate import FAIL, INCONCLUSIVE, PASS, Gate, Verdict, decide, holm
from hf_sparsify.evaluation.verdict.interval import Interval


def verdict_on(count: int, right: int, lost: int, gained: int, gate: Gate, **options: float) -> Verdict:
    """`right` of `count` dense answers are right; patching loses and gains some. No groups."""
    dense = [1.0] * right + [0.0] * (count - right)
    patched = [0.0] * lost + dense[lost : count - gained] + [1.0] * gained
    return decide(dense, patched, [str(i) for i in range(count)], gate, **options)  # type: ignore[arg-type]


def made_up(p: float, decision: str) -> Verdict:
    return Verdict(decision, "", Interval(0, 0, 0), None, p, None, "because", True)


@pytest.mark.parametrize("points", [0.0, -1.0, 100.1, math.nan, math.inf])
def test_max_drop_out_of_range(points: float) -> None:
    with pytest.raises(UsageError, match="--max-drop"):
        Gate(max_drop=points)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, 98.0, math.nan])
def test_min_recovery_out_of_range(share: float) -> None:
    with pytest.raises(UsageError, match="--min-recovery"):
        Gate(min_recovery=share)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert Gate(100).margin == "a drop of at most 100.0 points"
    assert Gate(min_recovery=1).margin == "at least 100.0 % of the dense score"
    assert Gate(0.25).margin == "a drop of at most 0.25 points"


@pytest.mark.parametrize(
    ("lost", "gained", "decision", "words"),
    [
        (1, 1, PASS, "the drop is at most 0.5 points (95 % interval -0.5 to +0.5), within the 1.0 allowed"),
        (60, 10, FAIL, "more than the 1.0 allowed"),
        (12, 2, INCONCLUSIVE, "may be more or less than the 1.0 points allowed"),
        (0, 60, PASS, "the drop is at most 0.0 points"),
    ],
)
def test_max_drop(lost: int, gained: int, decision: str, words: str) -> None:
    verdict = verdict_on(1000, 700, lost, gained, Gate(1.0))
    assert verdict.decision == decision
    assert words in verdict.reason
    assert verdict.difference.value == pytest.approx((gained - lost) / 10)
    assert verdict.recovery is not None
    assert verdict.recovery.value == pytest.approx(1 + (gained - lost) / 700)
    assert (verdict.p <= 0.025) == (decision == PASS)


@pytest.mark.parametrize(
    ("lost", "gained", "decision", "words"),
    [
        (1, 1, PASS, "% of the dense score remains (95 % interval 99.3 to 100.7), no less than the 98.0 asked for"),
        (60, 10, FAIL, "less than the 98.0 asked for"),
        (12, 2, INCONCLUSIVE, "may be more or less than the 98.0 % asked for"),
    ],
)
def test_min_recovery(lost: int, gained: int, decision: str, words: str) -> None:
    verdict = verdict_on(1000, 700, lost, gained, Gate(min_recovery=0.98))
    assert verdict.decision == decision
    assert words in verdict.reason
    assert (verdict.p <= 0.025) == (decision == PASS)


@pytest.mark.parametrize(("points", "fewest", "most"), [(1.0, 350, 390), (2.0, 170, 200)])
def test_no_flip_in_50_questions_is_inconclusive(points: float, fewest: int, most: int) -> None:
    verdict = verdict_on(50, 40, 0, 0, Gate(points))
    assert verdict.decision == INCONCLUSIVE
    assert verdict.needed is not None
    assert fewest <= verdict.needed <= most
    assert f"about {verdict.needed} items in all would decide" in verdict.reason


def test_no_flip_in_enough_questions_passes() -> None:
    assert verdict_on(400, 300, 0, 0, Gate(1.0)).decision == PASS


def test_only_an_inconclusive_verdict_needs_items() -> None:
    assert verdict_on(1000, 700, 1, 1, Gate(1.0)).needed is None
    assert verdict_on(1000, 700, 60, 10, Gate(1.0)).needed is None
    at_the_margin = verdict_on(100, 80, 1, 0, Gate(1.0))
    assert at_the_margin.decision == INCONCLUSIVE
    assert at_the_margin.needed is None
    assert "more items are unlikely to decide" in at_the_margin.reason


def test_a_dense_model_at_chance_leaves_nothing_to_recover() -> None:
    at_chance = verdict_on(100, 25, 0, 0, Gate(min_recovery=0.5), chance=0.25)
    assert at_chance.decision == INCONCLUSIVE
    assert at_chance.needed is None
    assert not at_chance.dense_above_chance
    assert "not clearly above chance, 25.0 points" in at_chance.reason
    assert verdict_on(100, 60, 0, 0, Gate(min_recovery=0.5), chance=0.25).decision == PASS


def test_a_dense_model_that_scores_nothing() -> None:
    verdict = verdict_on(100, 0, 0, 5, Gate(min_recovery=0.5))
    assert verdict.decision == INCONCLUSIVE
    assert verdict.recovery is None
    assert not verdict.dense_above_chance
    assert "nothing to recover" in verdict.reason


def test_max_drop_only_flags_a_dense_model_at_chance() -> None:
    verdict = verdict_on(400, 100, 0, 0, Gate(1.0), chance=0.25)
    assert verdict.decision == PASS
    assert not verdict.dense_above_chance
    assert "chance" not in verdict.reason


def test_groups_count() -> None:
    """600 questions without a flip pass on their own, but not as 60 passages of 10."""
    scores = [1.0] * 600
    assert decide(scores, scores, [str(i) for i in range(600)], Gate(1.0)).decision == PASS
    assert decide(scores, scores, [str(i // 10) for i in range(600)], Gate(1.0)).decision == INCONCLUSIVE


def test_partial_scores_and_determinism() -> None:
    generator = np.random.default_rng(0)
    dense = generator.random(300).round(2).tolist()
    patched = [max(0.0, score - 0.3) for score in dense]
    groups = [str(i // 3) for i in range(300)]
    verdict = decide(dense, patched, groups, Gate(2.0))
    assert verdict.decision == FAIL
    assert verdict == decide(dense, patched, groups, Gate(2.0))


def test_scores_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="do not match"):
        decide([1.0], [1.0, 0.0], ["a"], Gate())
    with pytest.raises(DataError, match="nothing to score"):
        decide([], [], [], Gate())
    with pytest.raises(DataError, match="from 0 to 1"):
        decide([70.0], [70.0], ["a"], Gate())


def test_to_dict_is_ready_for_json() -> None:
    verdict = verdict_on(50, 40, 0, 0, Gate(1.0))
    read = json.loads(json.dumps(verdict.to_dict()))
    assert read["decision"] == INCONCLUSIVE
    assert read["difference"]["value"] == 0
    assert read["p_holm"] is None


def test_holm_by_hand() -> None:
    """Sorted p 0.005, 0.011, 0.02, 0.03 times 4, 3, 2, 1; and never less than the one before."""
    verdicts = [made_up(0.02, PASS), made_up(0.005, PASS), made_up(0.03, INCONCLUSIVE), made_up(0.011, PASS)]
    adjusted = holm(verdicts)
    assert [v.p_holm for v in adjusted] == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert [v.decision for v in adjusted] == [INCONCLUSIVE, PASS, INCONCLUSIVE, INCONCLUSIVE]
    assert "not as one of 4 verdicts" in adjusted[0].reason
    assert [v.reason for v in adjusted][1:3] == ["because", "because"]
    assert [v.p_holm for v in verdicts] == [None] * 4


def test_holm_leaves_fail_and_a_lone_verdict_alone() -> None:
    assert [v.decision for v in holm([made_up(0.9, FAIL), made_up(0.001, PASS)])] == [FAIL, PASS]
    assert holm([made_up(0.024, PASS)])[0].decision == PASS
    assert holm([made_up(0.9, FAIL), made_up(0.8, FAIL)])[0].p_holm == 1.0
    assert holm([]) == []


def test_what_cannot_be_gained_is_not_imagined() -> None:
    dense, patched = [1.0] * 10, [0.9] * 10
    either = decide(dense, patched, list("abcdefghij"), Gate())
    downwards = decide(dense, patched, list("abcdefghij"), Gate(), support=(-100.0, 0.0))
    assert either.decision == INCONCLUSIVE
    assert downwards.decision == FAIL
    assert downwards.difference.high < 0 < either.difference.high
    assert downwards.difference.low == either.difference.low
