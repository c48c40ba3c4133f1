"""Scores, sums and lines of an evaluation, against numbers computed by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from both_arms import summary
from hf_sparsify.evaluation.datasets.squad import make_question_set
from hf_sparsify.evaluation.items import Question
from hf_sparsify.evaluation.journal import Journal
from hf_sparsify.evaluation.results import NEAR_TIE, TEXT_CHARACTERS, judge, prediction_lines, totals
from hf_sparsify.evaluation.run import Evaluation
from hf_sparsify.evaluation.tasks.answers import AnswerTask
from hf_sparsify.evaluation.tasks.base import TOO_LONG, Record, Task, TaskOptions
from hf_sparsify.evaluation.tasks.retrieval import Retrieval
from hf_sparsify.evaluation.verdict.gate import FAIL, INCONCLUSIVE, PASS, Gate


def task_without_model(kind: type[Task], records: list[Record]) -> Any:
    """What results ask of a task."""

    class WithoutModel(kind):  # type: ignore[misc, valid-type]
        name = "some task"
        style = "completion"
        max_new_tokens = 32

        def __init__(self) -> None:
            self.items = make_question_set("mine", "dev", [record.item for record in records])
            self.options = TaskOptions()
            self.batch_size = 8
            self._places = {f"Passage {number}.": number for number in range(8)}
            self._labels = [f"passage {number + 1}" for number in range(8)]

        encode = first_input = predict = calibration_inputs = lambda *arguments: None

    if kind is AnswerTask:
        WithoutModel.kl_unit = "nats"
    return WithoutModel()


def record(
    number: int,
    gold: tuple[str, ...],
    dense: str,
    patched: str,
    kind: str = "",
    margins: tuple[float, float] = (1.0, 1.0),
    **distance: Any,
) -> Record:
    """Two questions share a passage."""
    item = Question(f"q{number}", f"Passage {number // 2}.", "A question?", gold, kind=kind)
    arms = [{"answer": text, "margin": margin} for text, margin in zip((dense, patched), margins, strict=True)]
    return Record(item, f"hash {number}", 9, *arms, distance=distance or {"kl": 0.0, "tokens": 1})


# F1 by hand: "red barn" against "barn" has precision 1/2 and recall 1, so 2/3.
RECORDS = [
    record(0, ("barn",), "barn", "barn", "place", kl=0.1, tokens=1, margins=(NEAR_TIE / 2, NEAR_TIE)),
    record(1, ("barn", "hall"), "hall", "red barn", "place", kl=0.4, tokens=3, margins=(0.0, NEAR_TIE / 3)),
    record(2, ("Ann",), "Ben", "Ann", "who", kl=0.0, tokens=2),
    record(3, ("noon",), "noon", "night", "", kl=1.0, tokens=4),
]


def evaluation(records: list[Record], kind: type[Task] = AnswerTask) -> Evaluation:
    journal = Journal(seconds={"dense": 1.0, "patched": 2.0}, cached=3, work={1: 1, 0: len(records) - 1})
    return Evaluation(
        task_without_model(kind, records), "Prompt", records, Counter({TOO_LONG: 2, "of no use": 1}), journal
    )


def scored(records: list[Record]) -> dict[str, dict[str, float]]:
    return totals(records, task_without_model(AnswerTask, records))


def test_scores_by_hand() -> None:
    found = scored(RECORDS)
    assert found["dense"] == {"exact_match": 75.0, "f1": 75.0}
    assert found["patched"]["exact_match"] == 50
    assert found["patched"]["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)
    assert found["difference"]["exact_match"] == -25
    assert found["difference"]["f1"] == pytest.approx(100 * (2 + 2 / 3) / 4 - 75)


def test_scores_with_unanswerable_questions_by_hand() -> None:
    records = [record(0, (), "", "barn"), record(1, ("barn",), "barn", "")]
    assert scored(records) == {
        "dense": {"exact_match": 100.0, "f1": 100.0},
        "patched": {"exact_match": 0.0, "f1": 0.0},
        "difference": {"exact_match": -100.0, "f1": -100.0},
    }
    article, unanswered = record(0, ("the",), "a", "a"), record(1, (), "x", "x")
    assert scored([article])["dense"]["f1"] == 0
    assert scored([article, unanswered])["dense"]["f1"] == 50, "in version 2 both come to nothing"


def asked(passage: str) -> dict[str, str]:
    return {"question": "A question?", "passage": passage}


def test_flipped_answers_come_with_what_was_asked_as_long_as_results_stay_small() -> None:
    long, hidden = "x" * (TEXT_CHARACTERS + 1), replace(RECORDS[0].item, context="Others. Mine.", passage="Mine.")
    flipped = [replace(RECORDS[3], item=replace(RECORDS[3].item, id=f"q{number}")) for number in range(102)]
    flipped[0] = replace(flipped[0], item=replace(flipped[0].item, context=long))
    flipped[1] = replace(flipped[1], item=replace(hidden, id="q1", answers=("noon",)))
    answers = summary(evaluation(flipped))["flips"]["answers"]
    assert answers["q0"]["passage"] == f"{long[:-1]} ..."
    assert answers["q1"]["passage"] == "Mine.", "distractors are no part of what was asked"
    assert len(answers) == 102
    assert [name for name, answer in answers.items() if "passage" not in answer] == ["q100", "q101"]


def test_summary_by_hand() -> None:
    found = summary(evaluation(RECORDS))
    assert found["flips"] == {
        "metric": "exact_match",
        "right_to_wrong": ("q1", "q3"),
        "wrong_to_right": ("q2",),
        "p": 1.0,
        "descriptive": True,
        "answers": {
            "q1": {"gold": ["barn", "hall"], "dense": "hall", "patched": "red barn", **asked("Passage 0.")},
            "q2": {"gold": ["Ann"], "dense": "Ben", "patched": "Ann", **asked("Passage 1.")},
            "q3": {"gold": ["noon"], "dense": "noon", "patched": "night", **asked("Passage 1.")},
        },
    }
    assert found["same_answer_share"] == 1 / 4
    # The mean over tokens, not over questions.
    assert found["distance"]["kl"]["value"] == pytest.approx((0.1 + 3 * 0.4 + 2 * 0.0 + 4 * 1.0) / 10)
    assert found["distance"]["kl"]["low"] < found["distance"]["kl"]["value"] < found["distance"]["kl"]["high"]
    assert found["dataset"] == {
        "name": "mine",
        "split": "dev",
        "schema": "squad",
        "fingerprint": make_question_set("mine", "dev", [r.item for r in RECORDS]).fingerprint,
        "items": 4,
        "groups": 2,
        "left_out_too_long": 2,
        "left_out_otherwise": {"of no use": 1},
    }
    assert (found["prompt"], found["batch_size"]) == ({"style": "completion", "first": "Prompt"}, 8)
    assert found["near_ties"] == {"below": NEAR_TIE, "dense": 2, "patched": 1}
    assert found["processes"] == {"count": 2, "items": {"0": 3, "1": 1}}
    assert (found["dense_from_cache"], found["seconds"]) == (3, {"dense": 1.0, "patched": 2.0})
    json.dumps(found, allow_nan=False)


def test_intervals_by_hand() -> None:
    found = summary(evaluation(RECORDS))
    assert set(found["intervals"]) == {"exact_match", "f1"}
    for metric, interval in found["intervals"].items():
        assert interval["difference"] == pytest.approx(found["scores"]["difference"][metric])
        assert -100 <= interval["low"] < interval["difference"] < interval["high"] <= 100
    assert found["primary"] == "f1"
    assert found["verdict"]["difference"]["value"] == found["intervals"]["f1"]["difference"]
    assert (found["verdict"]["difference"]["low"], found["verdict"]["difference"]["high"]) == (
        found["intervals"]["f1"]["low"],
        found["intervals"]["f1"]["high"],
    )


def apart(count: int, dense: str, patched: str) -> list[Record]:
    """Questions on a passage each, whose right answer is barn."""
    made = [record(number, ("barn",), dense, patched) for number in range(count)]
    return [replace(r, item=replace(r.item, context=f"Passage {number}.")) for number, r in enumerate(made)]


@pytest.mark.parametrize(
    ("records", "gate", "decision"),
    [
        (apart(400, "barn", "barn"), Gate(1.0), PASS),
        (apart(100, "barn", "barn"), Gate(1.0), INCONCLUSIVE),
        (apart(100, "barn", "hall"), Gate(1.0), FAIL),
        (apart(100, "hall", "barn"), Gate(1.0), PASS),
        (RECORDS, Gate(1.0), INCONCLUSIVE),
    ],
)
def test_the_verdict_goes_by_the_primary_metric(records: list[Record], gate: Gate, decision: str) -> None:
    assert summary(evaluation(records), gate)["verdict"]["decision"] == decision


def test_independent_questions_are_said_to_be() -> None:
    found = summary(evaluation(apart(10, "barn", "hall")))
    assert (found["dataset"]["groups"], found["flips"]["descriptive"]) == (10, False)
    assert found["flips"]["p"] == pytest.approx(2 / 2**10)


def test_several_verdicts_are_corrected() -> None:
    several = [evaluation(apart(400, "barn", "barn"))] * 2
    alone, corrected = judge(several[:1], Gate(1.0), 0), judge(several, Gate(1.0), 0)
    assert alone[0].p_holm is None
    assert [verdict.p_holm for verdict in corrected] == [2 * alone[0].p] * 2


def test_without_answer_tokens_every_question_counts_once() -> None:
    records = [record(0, ("a",), "a", "a", kl=0.1), record(1, ("a",), "a", "a", kl=0.4)]
    found = summary(evaluation(records))
    assert found["distance"] == {"kl": {**found["distance"]["kl"], "value": pytest.approx(0.25), "unit": "nats"}}
    assert (found["task"], found["metrics"]) == ("some task", {"exact_match": "EM", "f1": "F1"})


def test_perplexity_by_hand() -> None:
    records = [
        record(0, ("a",), "a", "a", kl=0.1, tokens=1, nll={"dense": 2.0, "patched": 3.0}),
        record(2, ("a",), "a", "a", kl=0.4, tokens=3, nll={"dense": 1.0, "patched": 1.0}),
    ]
    found = summary(evaluation(records))["distance"]["perplexity"]
    assert found["dense"] == pytest.approx(math.exp((2 + 3 * 1) / 4))
    assert found["patched"] == pytest.approx(math.exp((3 + 3 * 1) / 4))
    assert found["ratio"] == pytest.approx(found["patched"] / found["dense"])
    assert found["low"] <= found["ratio"] <= found["high"]


def retrieved(number: int, dense: int, patched: int, cosine: float) -> Record:
    arms = [{"answer": f"passage {rank}", "rank": rank, "_question": "?"} for rank in (dense, patched)]
    item = Question(f"q{number}", "Passage 0.", "A question?", ("gold",), kind="any")
    return Record(item, "hash", 9, *arms, distance={"question_cosine": cosine, "passage_cosine": cosine / 2})


def test_retrieval_by_hand() -> None:
    records = [retrieved(0, 1, 1, 1.0), retrieved(1, 1, 4, 0.5), retrieved(2, 2, 1, 0.9), retrieved(3, 5, 5, 0.6)]
    evaluated = evaluation(records, Retrieval)
    found = summary(evaluated)
    assert found["scores"]["dense"] == {
        "accuracy": 50.0,
        "reciprocal_rank": pytest.approx(100 * (1 + 1 + 0.5 + 0.2) / 4),
    }
    assert found["scores"]["patched"]["accuracy"] == 50
    assert found["scores"]["difference"]["reciprocal_rank"] == pytest.approx(100 * (0 - 0.75 + 0.5 + 0) / 4)
    assert found["by_kind"]["any"]["patched"] == found["scores"]["patched"]
    assert found["primary"] == found["flips"]["metric"] == "accuracy"
    assert (found["flips"]["right_to_wrong"], found["flips"]["wrong_to_right"]) == (("q1",), ("q2",))
    assert found["same_answer_share"] == 1 / 2
    assert found["distance"] == {"question_cosine": pytest.approx(0.75), "passage_cosine": pytest.approx(0.375)}
    assert found["near_ties"] == {"below": NEAR_TIE, "dense": 0, "patched": 0}
    json.dumps(found, allow_nan=False)
    line = prediction_lines(evaluated)[1]
    assert line["gold"] == ["passage 1"]
    assert line["patched"] == {"answer": "passage 4", "rank": 4, "accuracy": 0.0, "reciprocal_rank": 0.25}
    assert line["distance"] == {"question_cosine": 0.5, "passage_cosine": 0.25}


def test_scores_by_kind() -> None:
    kinds = summary(evaluation(RECORDS))["by_kind"]
    assert list(kinds) == ["place", "who"], "a question without a kind belongs to none"
    assert (kinds["place"]["items"], kinds["who"]["items"]) == (2, 1)
    assert kinds["place"]["dense"]["exact_match"] == 100
    assert kinds["place"]["patched"]["exact_match"] == 50
    assert kinds["who"]["difference"]["exact_match"] == 100
    assert summary(evaluation(RECORDS[3:]))["by_kind"] == {}


def test_a_line_says_all() -> None:
    lines = prediction_lines(evaluation(RECORDS))
    assert lines[1] == {
        "id": "q1",
        "input_sha256": "hash 1",
        "tokens": 9,
        "kind": "place",
        "question": "A question?",
        "gold": ["barn", "hall"],
        "dense": {"answer": "hall", "margin": 0.0, "exact_match": 1.0, "f1": 1.0},
        "patched": {"answer": "red barn", "margin": NEAR_TIE / 3, "exact_match": 0.0, "f1": pytest.approx(2 / 3)},
        "same_answer": False,
        "distance": {"kl": 0.4, "tokens": 3},
    }
    assert "kind" not in lines[3], "it has none"
