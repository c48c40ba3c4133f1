"""Where the results of `sparsify eval` go, and what happens if something is there."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Sparsify, contents, refused


def test_a_run_has_a_directory_of_its_own_and_only_one(sparsify: Sparsify) -> None:
    sparsify("patch", "llama", "--k", "4", "--no-verify")
    command = ("eval", "-d", "q.jsonl", "--max-drop", "100")
    different = (
        *([], ["--max-new-tokens", "1"], ["--batch-size", "2"], ["--limit", "3"], ["--limit", "3", "--seed", "1"]),
        *(["--distractors", "1"], ["--dtype", "bfloat16"]),
    )
    for _ in range(2):
        for options in different:
            assert sparsify(*command, *options).code == 0
    runs = list(Path("sparsified/eval").iterdir())
    assert len(runs) == len(different)
    assert {json.loads((run / "results.json").read_text())["run_id"] for run in runs} == {run.name for run in runs}


def test_another_run_in_the_directory_is_not_written_over(sparsify: Sparsify, work: Path) -> None:
    sparsify("patch", "llama", "--k", "4", "--no-verify")
    command = ("eval", "-d", "q.jsonl", "--limit", "2", "--max-drop", "100", "-o", "run")
    assert sparsify(*command, "--max-new-tokens", "1").code == 0
    before = contents(work)
    for more in ([], ["--no-cache"]):
        refused(sparsify(*command, "--max-new-tokens", "2", *more), 2, "run exists already: give -o another directory")
        assert contents(work) == before
    done = sparsify(*command, "--max-new-tokens", "1")
    assert (done.code, "was there already, judged anew: run" in done.err) == (0, True)


def test_no_cache_runs_anew(sparsify: Sparsify, hugging_face_home: Path) -> None:
    sparsify("patch", "llama", "--k", "4", "--no-verify")
    command = ("eval", "-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "-o", "run")
    done = sparsify(*command, "--no-cache")
    assert (done.code, "wrote run" in done.err) == (0, True)
    assert not hugging_face_home.exists()
    before = Path("run/predictions.jsonl").read_bytes()
    (Path("run/predictions.jsonl")).write_text("")
    done = sparsify(*command, "--no-cache")
    assert (done.code, "wrote run" in done.err) == (0, True)
    assert Path("run/predictions.jsonl").read_bytes() == before


def test_what_cannot_be_asked_leaves_no_directory(sparsify: Sparsify, work: Path) -> None:
    sparsify("patch", "gpt2", "--k", "4", "--no-verify")
    record = {"id": "long", "context": "Ann is in the attic . " * 50, "question": "Where is Ann ?", "answers": ["den"]}
    Path("long.jsonl").write_text(json.dumps(record))
    Path("bad.txt").write_text("{passage}")
    refused(sparsify("eval", "-d", "long.jsonl"), 1, "no item of long.jsonl fits what the model can read at once")
    refused(sparsify("eval", "-d", "q.jsonl", "--prompt-template", "bad.txt"), 2, "there is no {passage} here")
    assert not Path("sparsified/eval").exists()


def test_a_recipe_is_named_once(sparsify: Sparsify) -> None:
    sparsify("patch", "llama", "--k", "4", "--no-verify")
    refused(sparsify("eval", "sparsified", "sparsified", "-d", "q.jsonl"), 2, "sparsified is given twice")


def test_damaged_files_are_made_anew(sparsify: Sparsify) -> None:
    sparsify("patch", "llama", "--k", "4", "--no-verify")
    command = ("eval", "-d", "q.jsonl", "--max-new-tokens", "2", "--max-drop", "100", "-o", "run")
    assert sparsify(*command).code == 0
    expected = Path("run/predictions.jsonl").read_bytes()
    Path("run/predictions.jsonl").write_bytes(expected[:-30])
    assert sparsify(*command).code == 0
    assert Path("run/predictions.jsonl").read_bytes() == expected
    Path("run/predictions.jsonl").unlink()
    assert sparsify(*command).code == 0
    assert Path("run/predictions.jsonl").read_bytes() == expected
    Path("run/results.json").unlink()
    Path("run/run.json").write_text('{"run": "ab')
    assert sparsify(*command).code == 0
    assert Path("run/predictions.jsonl").read_bytes() == expected
