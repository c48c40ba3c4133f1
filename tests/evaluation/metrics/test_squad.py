"""SQuAD's exact match and F1, against values worked out by hand and an oracle written from the definition."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.metrics import make_metric
from hf_sparsify.evaluation.metrics.answer_match import exact_match, f1, normalize_answer
from hypothesis import given
from hypothesis import strategies as st

WORDS = st.sampled_from(["The", "a", "an", "cat", "Cat.", "sat", "sat,", "mat", "-", "don't", "naïve", "7", "the-mat"])
PHRASES = st.lists(WORDS, max_size=6).map(" ".join)
TEXTS = st.one_of(PHRASES, st.text(max_size=20))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),
        ("A", ""),
        ("a.m.", "am"),
        ("U.S.", "us"),
        ("rock-and-roll", "rockandroll"),
        ("the-mat", "themat"),
        ("$1,000.50", "100050"),
        ("“quoted”", "“quoted”"),  # only ASCII punctuation goes
        ("10–20", "10–20"),
        ("Île-de-France", "îledefrance"),
        ("tab\tand\nline", "tab and line"),
        ("no\u00a0break", "no break"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalize(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "match", "overlap"),
    [
        ("Seven", ["seven"], 1, 1),
        ("the seven.", ["Seven", "7"], 1, 1),
        ("seven", ["eight"], 0, 0),
        ("red barn", ["barn"], 0, 2 / 3),  # precision 1/2, recall 1
        ("barn", ["old red barn"], 0, 1 / 2),  # precision 1, recall 1/3
        ("barn red", ["red barn"], 0, 1),  # the order of tokens does not count in F1
        ("cat cat", ["cat"], 0, 2 / 3),  # a token counts once for each time both have it
        ("cat cat dog", ["cat cat bird"], 0, 2 / 3),
        ("cat cat cat", ["cat cat dog dog"], 0, 4 / 7),  # 2 in common of 3 and of 4
        ("old barn", ["red barn", "very old barn indeed", "shed"], 0, 2 / 3),  # 1/2, 2/3, 0
        ("old barn", ["shed", "an old barn"], 1, 1),
        ("café", ["cafe"], 0, 0),
        ("ÉTÉ", ["été"], 1, 1),
        ("", ["barn"], 0, 0),
        ("the", ["barn"], 0, 0),
    ],
)
@pytest.mark.parametrize("version_2", [False, True])
def test_scores_by_hand(prediction: str, answers: list[str], match: float, overlap: float, version_2: bool) -> None:
    assert exact_match(prediction, answers, version_2=version_2) == match
    assert f1(prediction, answers, version_2=version_2) == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("prediction", "answers", "version_2", "match", "overlap"),
    [
        ("the", ["a"], False, 1, 0),  # version 1.1: equal, yet without a common token
        ("", ["The"], False, 1, 0),
        ("the", ["a"], True, 1, 1),  # version 2: both mean "no answer"
        ("", ["The", "barn"], True, 0, 0),  # version 2 drops a gold answer of which nothing is left
        ("", [], True, 1, 1),
        ("?", [], True, 1, 1),
        ("barn", [], True, 0, 0),
        ("", [], False, 1, 1),
        ("barn", [], False, 0, 0),
    ],
)
def test_empty_answers(prediction: str, answers: list[str], version_2: bool, match: float, overlap: float) -> None:
    assert exact_match(prediction, answers, version_2=version_2) == match
    assert f1(prediction, answers, version_2=version_2) == overlap


def oracle_tokens(text: str) -> list[str]:
    """Character by character, from the published description of the normalization."""
    spaced, word = "", ""
    for character in text.lower() + " ":
        if character in string.punctuation:
            continue
        # An article is a whole word; what is neither letter nor digit ends a word.
        if character.isalnum():
            word += character
        else:
            spaced += (" " if word in ("a", "an", "the") else word) + character
            word = ""
    return spaced.split()


def oracle_f1(prediction: str, gold: str) -> float:
    predicted, wanted = oracle_tokens(prediction), oracle_tokens(gold)
    left, common = list(wanted), 0
    for token in predicted:
        if token in left:
            left.remove(token)
            common += 1
    if common == 0:
        return 0.0
    return 2 * common / (len(predicted) + len(wanted))


@given(prediction=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=3))
def test_scores_equal_the_oracle(prediction: str, answers: list[str]) -> None:
    assert normalize_answer(prediction).split() == oracle_tokens(prediction)
    assert f1(prediction, answers) == pytest.approx(max(oracle_f1(prediction, gold) for gold in answers))
    wanted = any(oracle_tokens(prediction) == oracle_tokens(gold) for gold in answers)
    assert exact_match(prediction, answers) == float(wanted)


@given(text=TEXTS)
def test_normalization_is_idempotent(text: str) -> None:
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@given(prediction=TEXTS, answers=st.lists(TEXTS, max_size=3), version_2=st.booleans())
def test_scores_are_bounded_and_exact_match_implies_full_f1(
    prediction: str, answers: list[str], version_2: bool
) -> None:
    match, overlap = (score(prediction, answers, version_2=version_2) for score in (exact_match, f1))
    assert match in (0.0, 1.0)
    assert 0.0 <= overlap <= 1.0
    if match and (normalize_answer(prediction) or version_2):
        assert overlap == 1.0


@given(left=TEXTS, right=TEXTS)
def test_f1_is_symmetric(left: str, right: str) -> None:
    assert f1(left, [right]) == pytest.approx(f1(right, [left]))


@given(prediction=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=3), another=TEXTS)
def test_another_gold_answer_never_lowers_a_score(prediction: str, answers: list[str], another: str) -> None:
    for score in (exact_match, f1):
        assert score(prediction, [*answers, another]) >= score(prediction, answers)


def rows(table: list[tuple[str, str, list[str]]]) -> dict[str, list[dict[str, Any]]]:
    return {
        "predictions": [{"id": key, "prediction_text": text} for key, text, _ in table],
        "references": [
            {"id": key, "answers": {"text": golds, "answer_start": [0] * len(golds)}} for key, _, golds in table
        ],
    }


ANSWERABLE = [("q1", "the red barn", ["barn"]), ("q2", "Seven", ["seven", "7"]), ("q3", "", ["dog"])]
MIXED = [*ANSWERABLE, ("q4", "", []), ("q5", "a guess", [])]


def test_metric_v1() -> None:
    assert make_metric(version_2=False).compute(**rows(ANSWERABLE)) == {
        "exact_match": pytest.approx(100 / 3),
        "f1": pytest.approx(100 * (2 / 3 + 1) / 3),
    }


def test_metric_v1_matches_by_id_and_counts_a_missing_prediction_as_wrong() -> None:
    data = rows(ANSWERABLE)
    data["predictions"].reverse()
    assert make_metric(version_2=False).compute(**data)["exact_match"] == pytest.approx(100 / 3)
    data["predictions"][1]["id"] = "another"
    assert make_metric(version_2=False).compute(**data)["exact_match"] == 0.0


def test_metric_v2() -> None:
    assert make_metric(version_2=True).compute(**rows(MIXED)) == {
        "exact": pytest.approx(40.0),
        "f1": pytest.approx(100 * (2 / 3 + 1 + 1) / 5),
        "total": 5,
        "HasAns_exact": pytest.approx(100 / 3),
        "HasAns_f1": pytest.approx(100 * (2 / 3 + 1) / 3),
        "HasAns_total": 3,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }


def test_metric_v2_reports_only_groups_that_have_questions() -> None:
    assert set(make_metric(version_2=True).compute(**rows(ANSWERABLE))) == {
        f"{prefix}{name}" for prefix in ("", "HasAns_") for name in ("exact", "f1", "total")
    }


def test_metric_v2_refuses_a_missing_prediction() -> None:
    data = rows(MIXED)
    data["predictions"][0]["id"] = "another"
    with pytest.raises(DataError, match="no prediction for question q1"):
        make_metric(version_2=True).compute(**data)


@pytest.mark.parametrize("version_2", [False, True])
def test_metric_can_be_used_again(version_2: bool) -> None:
    metric = make_metric(version_2)
    first = metric.compute(**rows(ANSWERABLE))
    assert metric.compute(**rows(ANSWERABLE)) == first
    with pytest.raises(DataError, match="nothing to score"):
        metric.compute(predictions=[], references=[])


@pytest.mark.parametrize("version_2", [False, True])
def test_metric_leaves_no_files_and_no_trace_in_numpy(
    version_2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = repr(np.random.get_state())
    make_metric(version_2).compute(**rows(ANSWERABLE))
    assert os.listdir(tmp_path) == []
    assert repr(np.random.get_state()) == before
