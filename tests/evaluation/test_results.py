"""Scores, sums and files of an evaluation, against numbers computed by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.errors import SparsifyError
from hf_sparsify.evaluation.questions import Question, make_question_set
from hf_sparsify.evaluation.results import save_results, score, summarize
from hf_sparsify.evaluation.run import Evaluation, Prediction


def prediction(
    number: int, gold: tuple[str, ...], dense: str, patched: str, kind: str = "", kl: float = 0.0, tokens: int = 1
) -> Prediction:
    question = Question(f"q{number}", "A passage.", "A question?", gold, kind=kind)
    exact = {"dense": float(dense in gold), "patched": float(patched in gold)}
    return Prediction(question, 9, {"dense": dense, "patched": patched}, exact, exact, kl, tokens)


# F1 by hand: "red barn" against "barn" has precision 1/2 and recall 1, so 2/3.
PREDICTIONS = [
    prediction(0, ("barn",), "barn", "barn", "place", kl=0.1, tokens=1),
    prediction(1, ("barn", "hall"), "hall", "red barn", "place", kl=0.4, tokens=3),
    prediction(2, ("Ann",), "Ben", "Ann", "who", kl=0.0, tokens=2),
    prediction(3, ("noon",), "noon", "night", "", kl=1.0, tokens=4),
]


def evaluation(predictions: list[Prediction]) -> Evaluation:
    questions = make_question_set("mine", "dev", [p.question for p in predictions])
    return Evaluation(questions, "completion", "Prompt", 8, 32, predictions=predictions, left_out=2)


def test_scores_by_hand() -> None:
    found = score(PREDICTIONS, False)
    assert found["dense"] == {"exact_match": 75.0, "f1": 75.0}
    assert found["patched"]["exact_match"] == 50
    assert found["patched"]["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)
    assert found["difference"]["exact_match"] == -25
    assert found["difference"]["f1"] == pytest.approx(100 * (2 + 2 / 3) / 4 - 75)


def test_scores_with_unanswerable_questions_by_hand() -> None:
    predictions = [prediction(0, (), "", "barn"), prediction(1, ("barn",), "barn", "")]
    assert score(predictions, True) == {
        "dense": {"exact_match": 100.0, "f1": 100.0},
        "patched": {"exact_match": 0.0, "f1": 0.0},
        "difference": {"exact_match": -100.0, "f1": -100.0},
    }


def test_summary_by_hand() -> None:
    found = summarize(evaluation(PREDICTIONS))
    assert found["changed"] == {"right_to_wrong": 2, "wrong_to_right": 1}
    assert found["same_answer_share"] == 1 / 4
    # The mean over tokens, not over questions.
    assert found["mean_kl"] == pytest.approx((0.1 + 3 * 0.4 + 2 * 0.0 + 4 * 1.0) / 10)
    assert found["dataset"]["questions"] == 4
    assert found["dataset"]["left_out_too_long"] == 2
    assert (found["dataset"]["name"], found["dataset"]["split"], found["dataset"]["version_2"]) == (
        "mine",
        "dev",
        False,
    )
    json.dumps(found, allow_nan=False)


def test_scores_by_kind() -> None:
    kinds = summarize(evaluation(PREDICTIONS))["by_kind"]
    assert list(kinds) == ["place", "who"], "a question without a kind belongs to none"
    assert (kinds["place"]["questions"], kinds["who"]["questions"]) == (2, 1)
    assert kinds["place"]["dense"]["exact_match"] == 100
    assert kinds["place"]["patched"]["exact_match"] == 50
    assert kinds["who"]["difference"]["exact_match"] == 100
    assert summarize(evaluation(PREDICTIONS[3:]))["by_kind"] == {}


def test_both_files_are_written(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "run"
    assert save_results({"umlaut": "ü"}, PREDICTIONS, directory) == directory
    assert sorted(os.listdir(directory)) == ["predictions.jsonl", "results.json"]
    assert json.loads((directory / "results.json").read_text(encoding="utf-8")) == {"umlaut": "ü"}
    lines = (directory / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [p.to_dict() for p in PREDICTIONS]
    assert lines[-1] == ""
    assert os.listdir(tmp_path / "deep") == ["run"]


def test_a_prediction_says_all() -> None:
    assert PREDICTIONS[1].to_dict() == {
        "id": "q1",
        "kind": "place",
        "question": "A question?",
        "gold": ["barn", "hall"],
        "prompt_tokens": 9,
        "dense": {"answer": "hall", "exact_match": 1.0, "f1": 1.0},
        "patched": {"answer": "red barn", "exact_match": 0.0, "f1": 0.0},
        "same_answer": False,
        "kl": 0.4,
        "answer_tokens": 3,
    }


def test_an_existing_directory_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(SparsifyError, match="exists already"):
        save_results({}, PREDICTIONS, tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsifyError, match=r"cannot write the results to .*file/run"):
        save_results({}, PREDICTIONS, tmp_path / "file" / "run")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_write_leaves_nothing(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Prediction) -> None:
        raise error

    monkeypatch.setattr(Prediction, "to_dict", fail)
    with pytest.raises((KeyboardInterrupt, SparsifyError)) as caught:
        save_results({}, PREDICTIONS, tmp_path / "run")
    assert isinstance(caught.value, KeyboardInterrupt) or "No space left on device" in str(caught.value)
    assert os.listdir(tmp_path) == []
