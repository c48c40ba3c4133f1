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
from hf_sparsify.evaluation.run import Evaluation
from hf_sparsify.evaluation.tasks.answers import AnswerTask
from hf_sparsify.evaluation.tasks.base import Prediction, Task
from hf_sparsify.evaluation.tasks.retrieval import Retrieval


def task_without_model(kind: type[Task], version_2: bool = False) -> Any:
    """What results ask of a task."""

    class WithoutModel(kind):  # type: ignore[misc, valid-type]
        name = "some task"
        kl_unit = "nats"
        style = "completion"
        max_new_tokens = 32

        def __init__(self) -> None:
            self.questions = make_question_set("mine", "dev", [Question("q", "A", "B", () if version_2 else ("C",))])

        tokens = first_input = answer = calibration_inputs = lambda *arguments: None

    return WithoutModel()


ANSWERS = task_without_model(AnswerTask)


def prediction(
    number: int,
    gold: tuple[str, ...],
    dense: str,
    patched: str,
    kind: str = "",
    kl: float = 0.0,
    tokens: int | None = 1,
) -> Prediction:
    question = Question(f"q{number}", "A passage.", "A question?", gold, kind=kind)
    scores = {
        arm: dict.fromkeys(("exact_match", "f1"), float(answer in gold))
        for arm, answer in (("dense", dense), ("patched", patched))
    }
    return Prediction(question, gold, 9, {"dense": dense, "patched": patched}, scores, kl, tokens)


# F1 by hand: "red barn" against "barn" has precision 1/2 and recall 1, so 2/3.
PREDICTIONS = [
    prediction(0, ("barn",), "barn", "barn", "place", kl=0.1, tokens=1),
    prediction(1, ("barn", "hall"), "hall", "red barn", "place", kl=0.4, tokens=3),
    prediction(2, ("Ann",), "Ben", "Ann", "who", kl=0.0, tokens=2),
    prediction(3, ("noon",), "noon", "night", "", kl=1.0, tokens=4),
]


def evaluation(predictions: list[Prediction], task: Any = ANSWERS) -> Evaluation:
    questions = make_question_set("mine", "dev", [p.question for p in predictions])
    return Evaluation(questions, task, "Prompt", 8, predictions=predictions, left_out=2)


def test_scores_by_hand() -> None:
    found = score(PREDICTIONS, ANSWERS)
    assert found["dense"] == {"exact_match": 75.0, "f1": 75.0}
    assert found["patched"]["exact_match"] == 50
    assert found["patched"]["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)
    assert found["difference"]["exact_match"] == -25
    assert found["difference"]["f1"] == pytest.approx(100 * (2 + 2 / 3) / 4 - 75)


def test_scores_with_unanswerable_questions_by_hand() -> None:
    predictions = [prediction(0, (), "", "barn"), prediction(1, ("barn",), "barn", "")]
    assert score(predictions, task_without_model(AnswerTask, version_2=True)) == {
        "dense": {"exact_match": 100.0, "f1": 100.0},
        "patched": {"exact_match": 0.0, "f1": 0.0},
        "difference": {"exact_match": -100.0, "f1": -100.0},
    }
    articles = [prediction(0, ("the",), "a", "a")]
    assert score(articles, ANSWERS)["dense"]["f1"] == 0
    assert score(articles, task_without_model(AnswerTask, version_2=True))["dense"]["f1"] == 100


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


def test_without_answer_tokens_every_question_counts_once() -> None:
    predictions = [
        prediction(0, ("a",), "a", "a", kl=0.1, tokens=None),
        prediction(1, ("a",), "a", "a", kl=0.4, tokens=None),
    ]
    found = summarize(evaluation(predictions))
    assert found["mean_kl"] == pytest.approx(0.25)
    assert (found["mean_cosine"], found["mean_passage_cosine"]) == (None, None)
    assert (found["task"], found["kl_unit"], found["metrics"]) == (
        "some task",
        "nats",
        {"exact_match": "EM", "f1": "F1"},
    )


def retrieved(number: int, dense: int, patched: int, cosine: float) -> Prediction:
    ranks = {"dense": dense, "patched": patched}
    scores = {arm: {"accuracy": float(rank == 1), "reciprocal_rank": 1 / rank} for arm, rank in ranks.items()}
    question = Question(f"q{number}", "A passage.", "A question?", ("gold",), kind="any")
    answers = {arm: f"passage {rank}" for arm, rank in ranks.items()}
    cosines = {"question": cosine, "passage": cosine / 2}
    return Prediction(question, ("passage 1",), 9, answers, scores, cosines=cosines, ranks=ranks)


def test_retrieval_by_hand() -> None:
    predictions = [retrieved(0, 1, 1, 1.0), retrieved(1, 1, 4, 0.5), retrieved(2, 2, 1, 0.9), retrieved(3, 5, 5, 0.6)]
    found = summarize(evaluation(predictions, task_without_model(Retrieval)))
    assert found["scores"]["dense"] == {
        "accuracy": 50.0,
        "reciprocal_rank": pytest.approx(100 * (1 + 1 + 0.5 + 0.2) / 4),
    }
    assert found["scores"]["patched"]["accuracy"] == 50
    assert found["scores"]["difference"]["reciprocal_rank"] == pytest.approx(100 * (0 - 0.75 + 0.5 + 0) / 4)
    assert found["by_kind"]["any"]["patched"] == found["scores"]["patched"]
    assert found["changed"] == {"right_to_wrong": 1, "wrong_to_right": 1}
    assert found["same_answer_share"] == 1 / 2
    assert found["mean_kl"] is None
    assert (found["mean_cosine"], found["mean_passage_cosine"]) == (pytest.approx(0.75), pytest.approx(0.375))
    json.dumps(found, allow_nan=False)
    line = predictions[1].to_dict()
    assert line["gold"] == ["passage 1"]
    assert line["patched"] == {"answer": "passage 4", "rank": 4, "accuracy": 0.0, "reciprocal_rank": 0.25}
    assert line["cosines"] == {"question": 0.5, "passage": 0.25}


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
