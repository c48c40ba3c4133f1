"""What `sparsify eval` concludes: exit codes, several recipes, warnings, and the options of how to ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_language_models
from command_line import Done, Sparsify, refused

ASK = ("-d", "q.jsonl", "--max-new-tokens", "3")


@pytest.fixture
def right_when_dense(sparsify: Sparsify, recipe: Path) -> Path:
    """Questions whose gold answer is what the dense model says, so that everything else is a loss."""
    tiny_language_models.save_questions(Path("many.jsonl"), 60)
    done = sparsify("eval", "-d", "many.jsonl", "--max-new-tokens", "3", "--max-drop", "100", "-o", "first", "-q")
    assert done.code == 0, done.err
    lines = map(json.loads, Path("first/predictions.jsonl").read_text().splitlines())
    answers = {line["id"]: line["dense"]["answer"] for line in lines}
    records = [
        {**record, "answers": [answers[record["id"]]]}
        for record in tiny_language_models.records(60)
        if answers[record["id"]]
    ]
    Path("gold.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return recipe


def decision(done: Done) -> str:
    return str(json.loads(done.out)["verdict"]["decision"])


def test_exit_codes_follow_the_verdict(sparsify: Sparsify, right_when_dense: Path) -> None:
    ask = ("-d", "gold.jsonl", "--max-new-tokens", "3", "--json")
    failed = sparsify("eval", *ask)
    assert (failed.code, decision(failed)) == (3, "FAIL")
    assert json.loads(failed.out)["scores"]["dense"]["f1"] == 100
    generous = sparsify("eval", *ask, "--max-drop", "100")
    assert (generous.code, decision(generous)) == (0, "PASS")
    assert json.loads(generous.out)["run"] == json.loads(failed.out)["run"], "judged anew, not run anew"
    recovery = sparsify("eval", *ask, "--min-recovery", "0.99")
    assert (recovery.code, decision(recovery)) == (3, "FAIL")
    assert "of the dense score" in json.loads(recovery.out)["verdict"]["reason"]


def test_too_few_items_are_inconclusive(sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("eval", *ASK)
    assert done.code == 0
    assert "INCONCLUSIVE: " in done.out
    assert "items in all would decide" in done.out
    assert sparsify("eval", *ASK, "--require-conclusion").code == 5


def test_several_recipes_are_compared_and_corrected(sparsify: Sparsify, right_when_dense: Path) -> None:
    # Random weights attend to everything alike, which the mean of the values makes up for.
    assert sparsify("patch", "llama", "--k", "4", "--compensation", "none", "--no-verify", "--force").code == 0
    assert sparsify("patch", "llama", "--k", "500", "--no-verify", "-o", "same").code == 0
    ask = ("-d", "gold.jsonl", "--max-new-tokens", "3", "--max-drop", "30")
    done = sparsify("eval", "sparsified", "same", *ask)
    assert done.code == 3, "one of them fails"
    assert "2 verdicts" in done.out
    assert "Holm" in done.out
    several = json.loads(sparsify("eval", "sparsified", "same", *ask, "--json").out)
    assert [results["verdict"]["decision"] for results in several] == ["FAIL", "PASS"]
    assert [results["recipe"] for results in several] == ["sparsified", "same"]
    alone = json.loads(sparsify("eval", "same", *ask, "--json").out)
    assert alone["verdict"]["p_holm"] is None
    assert several[1]["verdict"]["p_holm"] == 2 * alone["verdict"]["p"]
    saved = json.loads((next(Path("same/eval").iterdir()) / "results.json").read_text())
    assert saved["verdict"] == alone["verdict"]


def test_recipes_for_two_models_are_refused(sparsify: Sparsify, recipe: Path) -> None:
    assert sparsify("patch", "other", "--k", "2", "--no-verify", "-o", "two").code == 0
    refused(sparsify("eval", "sparsified", "two", *ASK), 2, "evaluate recipes for one model at a time")
    refused(sparsify("eval", "sparsified", "llama", *ASK), 2, "llama holds no recipe")
    refused(sparsify("eval", "sparsified", "two", *ASK, "-o", "out"), 2, "-o names one directory")


def test_questions_that_calibration_has_seen_are_warned_about(sparsify: Sparsify, recipe: Path) -> None:
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4").code == 0
    done = sparsify("eval", *ASK, "--json")
    assert "warning: 4 of these 6 items were used for calibration" in done.err
    assert json.loads(done.out)["seen_in_calibration"] == 4
    tiny_language_models.save_questions(Path("new.jsonl"), 12)
    Path("new.jsonl").write_text("\n".join(Path("new.jsonl").read_text().splitlines()[6:]))
    done = sparsify("eval", "-d", "new.jsonl", "--max-new-tokens", "3", "--json")
    assert "warning" not in done.err
    assert json.loads(done.out)["seen_in_calibration"] == 0


def test_what_results_say_of_how_it_was_asked(sparsify: Sparsify, recipe: Path) -> None:
    Path("prompt.txt").write_text("{context}\n{question}\nIt is {answer}")
    tiny_language_models.save_questions(Path("shots.jsonl"), 9)
    options = ("--prompt-template", "prompt.txt", "--shots", "2", "--shots-from", "shots.jsonl", "--distractors", "1")
    done = sparsify("eval", *ASK, *options, "--seed", "5", "--json")
    assert done.code in (0, 3), done.err
    results = json.loads(done.out)
    first = results["prompt"]["first"]
    asked = tiny_language_models.records(6)
    assert first.endswith("\nIt is")
    assert first.count("\nIt is") == 3, "two examples and the question"
    assert sum(record["context"] in first for record in asked) >= 2, "the passage and a distractor"
    assert len(results["shots"]) == 2
    assert set(results["shots"]) <= {"q6", "q7", "q8"}, "none that is asked"
    assert (results["distractors"], results["seed"]) == (1, 5)
    assert results["template"].startswith("{context}")
    assert results["command"].startswith("sparsify eval -d q.jsonl")
    assert results["environment"]["python"]
    assert results["versions"]["torch"]
    (run,) = Path("sparsified/eval").iterdir()
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert all(set(line) >= {"id", "input_sha256", "dense", "patched"} for line in lines)
    assert not any("seconds" in line or "time" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--max-drop", "0"], "--max-drop must be above 0"),
        (["--max-drop", "nan"], "--max-drop must be above 0"),
        (["--min-recovery", "1.5"], "--min-recovery must be above 0 and at most 1"),
        (["--shots", "-1"], "--shots must be at least 0"),
        (["--seed", "-5"], "--seed must be at least 0"),
        (["--distractors", "-1"], "--distractors must be at least 0"),
        (["--shots-from", "q.jsonl"], "--shots-from goes with --shots N"),
        (["--shots", "1"], "name another file or data set with --shots-from"),
        (["--distractors", "50"], "--distractors"),
        (["--device-map", "auto", "--device", "cpu"], "--device-map and --device exclude each other"),
    ],
)
def test_options_that_cannot_be_used(options: list[str], sentence: str, sparsify: Sparsify, recipe: Path) -> None:
    refused(sparsify("eval", *ASK, *options), 2, sentence)


def test_a_template_that_cannot_be_used(sparsify: Sparsify, recipe: Path) -> None:
    refused(sparsify("eval", *ASK, "--prompt-template", "none.txt"), 1, "cannot read the prompt template none.txt")
    Path("bad.txt").write_text("{passage}")
    refused(sparsify("eval", *ASK, "--prompt-template", "bad.txt"), 2, "there is no {passage} here; the names are")


def test_data_sets_are_listed(sparsify: Sparsify) -> None:
    done = sparsify("datasets")
    assert done.code == 0
    rows = done.out.splitlines()
    assert rows[0].split()[:3] == ["name", "task", "metric"]
    assert {"squad", "arc_challenge", "sst2", "demo", "text"} <= {row.split()[0] for row in rows[2:] if row.strip()}
