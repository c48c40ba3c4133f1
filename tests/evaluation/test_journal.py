"""The files of a run: what is in them while it goes on and when it has ended, and what a kill leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from command_line import contents
from faulty_disk import FaultyDisk, disk_full
from hf_sparsify.errors import SparsifyError, UsageError
from hf_sparsify.evaluation.items import Question
from hf_sparsify.evaluation.journal import SCHEMA_VERSION, Journal, ended_run, predictions_of
from hf_sparsify.evaluation.tasks.base import Record
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.processes import Processes

ALONE = Processes()
LINES = [{"id": "ä", "dense": {"answer": "ü\u2028"}}, {"id": "b", "dense": {"answer": ""}}]
RESULTS = {
    "schema_version": SCHEMA_VERSION,
    "run": "key",
    "dataset": {},
    "kept": {},
    "umlaut": "ü",
    "processes": {"items": {"0": 2}},
    "seconds": {"dense": 1.0},
    "dense_from_cache": 1,
}


def records(*names: str) -> list[Record]:
    return [
        Record(Question(name, "A passage.", "A question?", ()), f"hash {name}", 9, {"answer": "ü\u2028"}, {}, {})
        for name in names
    ]


def add(journal: Journal, batch: int, *names: str, rank: int = 0) -> None:
    journal.append(batch, records(*names), Meter(), {"dense": 0.5, "patched": 1.5}, 1, rank)


def read(file: Path) -> list[Any]:
    lines = file.read_text(encoding="utf-8").split("\n")
    assert lines[-1] == ""
    return [json.loads(line) for line in lines[:-1]]


def test_both_files_are_written(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "run"
    written = Journal.open(directory, "key", ALONE).finish(LINES, RESULTS)
    assert sorted(os.listdir(directory)) == ["predictions.jsonl", "results.json"]
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    assert {name: value for name, value in results.items() if not name.endswith("sha256")} == RESULTS
    assert read(directory / "predictions.jsonl") == LINES
    assert os.listdir(tmp_path / "deep") == ["run"]
    assert ended_run(directory) == results == written
    assert predictions_of(directory, results)


@pytest.mark.parametrize("bit", range(0, 8 * 60, 7))
def test_one_flipped_bit_is_seen(bit: int, tmp_path: Path) -> None:
    """In the results the run has not ended; other predictions are not those of the results."""
    results = Journal.open(tmp_path, "key", ALONE).finish(LINES, RESULTS)
    for name in ("results.json", "predictions.jsonl"):
        good = (tmp_path / name).read_bytes()
        damaged = bytearray(good)
        damaged[bit // 8 * len(good) // 60] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(damaged)
        ended = ended_run(tmp_path)
        assert ended is None or (ended == results and predictions_of(tmp_path, ended) == (name == "results.json"))
        (tmp_path / name).write_bytes(good)


def test_a_journal_in_memory_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    add(journal, 0, "a")
    journal.merge(ALONE)
    journal.finish(LINES, RESULTS)
    assert (list(journal.records), os.listdir(tmp_path)) == (["a"], [])


def test_what_was_done_is_known_again(tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "run", "key", ALONE)
    add(first, 3, "a", "b")
    add(first, 1, "c")
    assert sorted(os.listdir(tmp_path / "run")) == ["batches.jsonl", "predictions.jsonl", "run.json"]
    assert ended_run(tmp_path / "run") is None
    first._lock.close()  # type: ignore[union-attr]  # as the end of the process does
    again = Journal.open(tmp_path / "run", "key", ALONE)
    for journal in (first, again):
        assert (journal.done, set(journal.records)) == ({1, 3}, {"a", "b", "c"})
        assert (journal.seconds, journal.cached, journal.work) == ({"dense": 1.0, "patched": 3.0}, 2, {0: 3})
        assert [journal.has(batch) for batch in range(4)] == [False, True, False, True]
        assert journal.records["b"] == records("b")[0].to_dict()
        assert journal.ended is None


@pytest.mark.parametrize(
    "torn", ['{"id": "d", "den', '{"batch": 7, "items": ["d"', "\x00\x00", "[]", '"text"', "\udcff"]
)
@pytest.mark.parametrize("file", ["predictions.jsonl", "batches.jsonl"])
def test_a_line_that_a_kill_cut_short_is_dropped(torn: str, file: str, tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "run", "key", ALONE)
    add(first, 0, "a")
    first._lock.close()  # type: ignore[union-attr]
    with (tmp_path / "run" / file).open("ab") as end:
        end.write(torn.encode("utf-8", "surrogateescape"))
    again = Journal.open(tmp_path / "run", "key", ALONE)
    assert (again.done, set(again.records)) == ({0}, {"a"})
    add(again, 1, "b")
    assert [line["id"] for line in read(tmp_path / "run" / "predictions.jsonl")] == ["a", "b"]
    assert [line["batch"] for line in read(tmp_path / "run" / "batches.jsonl")] == [0, 1]


def test_items_without_their_batch_are_done_again(tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "run", "key", ALONE)
    add(first, 0, "a")
    add(first, 1, "b")
    first._lock.close()  # type: ignore[union-attr]
    batches = tmp_path / "run" / "batches.jsonl"
    batches.write_text(batches.read_text().split("\n")[0] + "\n")
    again = Journal.open(tmp_path / "run", "key", ALONE)
    assert (again.done, set(again.records)) == ({0}, {"a"})
    assert [line["id"] for line in read(tmp_path / "run" / "predictions.jsonl")] == ["a"]


def test_a_batch_without_its_items_is_done_again(tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "run", "key", ALONE)
    add(first, 0, "a")
    add(first, 1, "b", "c")
    first._lock.close()  # type: ignore[union-attr]
    predictions = tmp_path / "run" / "predictions.jsonl"
    predictions.write_text("\n".join(predictions.read_text(encoding="utf-8").split("\n")[:2]) + "\n", encoding="utf-8")
    again = Journal.open(tmp_path / "run", "key", ALONE)
    assert (again.done, set(again.records), again.work) == ({0}, {"a"}, {0: 1})


def test_another_run_in_the_same_place_is_refused(tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "run", "key", ALONE)
    add(first, 0, "a")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"another process is evaluating into .*run: wait for it"):
        Journal.open(tmp_path / "run", "key", ALONE)
    first._lock.close()  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"run holds another run that has not ended: give -o another directory"):
        Journal.open(tmp_path / "run", "other", ALONE)
    assert contents(tmp_path) == before


def test_a_run_can_be_done_anew(tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "run", "key", ALONE)
    add(first, 0, "a")
    first.finish(LINES, RESULTS)
    first._lock.close()  # type: ignore[union-attr]
    again = Journal.open(tmp_path / "run", "key", ALONE, anew=True)
    assert (again.done, again.records, ended_run(tmp_path / "run")) == (set(), {}, None)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_run_that_has_ended_has_done_every_batch(tmp_path: Path) -> None:
    Journal.open(tmp_path / "run", "key", ALONE).finish(LINES, RESULTS)
    journal = Journal.of_ended(tmp_path / "run", RESULTS)
    assert journal.has(0)
    assert journal.has(99)
    assert list(journal.records.values()) == LINES
    assert (journal.ended, journal.work, journal.cached) == (RESULTS, {0: 2}, 1)


@pytest.mark.parametrize("version", [2, SCHEMA_VERSION + 1, None, "3"])
def test_results_of_another_schema_are_no_ended_run(version: Any, tmp_path: Path) -> None:
    Journal.open(tmp_path / "run", "key", ALONE).finish(LINES, {**RESULTS, "schema_version": version})
    assert ended_run(tmp_path / "run") is None


def test_the_first_process_takes_in_what_the_others_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    both = [Journal.open(tmp_path / "run", "key", Processes(rank, 2)) for rank in (0, 1)]
    add(both[0], 0, "a", "b")
    add(both[1], 1, "c", rank=1)
    assert "predictions.rank1.jsonl" in os.listdir(tmp_path / "run")
    for rank in (1, 0):
        both[rank].merge(Processes(rank, 2))
    assert (both[0].done, set(both[0].records), both[0].work) == ({0, 1}, {"a", "b", "c"}, {0: 2, 1: 1})
    assert sorted(os.listdir(tmp_path / "run")) == ["batches.jsonl", "predictions.jsonl", "run.json"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SparsifyError, match=r"cannot write the results to .*file/run"):
        Journal.open(tmp_path / "file" / "run", "key", ALONE)
    assert os.listdir(tmp_path) == ["file"]


ENDED = 11  # calls to the file system until the run has ended: two files of five calls each, and run.json removed


@pytest.mark.parametrize("error", [KeyboardInterrupt, disk_full])
@pytest.mark.parametrize(
    ("method", "failing"), [*(("append", n) for n in range(4)), *(("finish", n) for n in range(ENDED + 1))]
)
def test_a_failed_write_loses_no_finished_batch(error: Any, method: str, failing: int, tmp_path: Path) -> None:
    """Whatever call to the file system fails, the run goes on from the batches that were done, or has ended."""
    journal = Journal.open(tmp_path / "run", "key", ALONE)
    add(journal, 0, "ä")
    if method == "finish":
        add(journal, 1, "b")
    disk = FaultyDisk(tmp_path / "run", failing, error)
    with disk.at_work(), pytest.raises((KeyboardInterrupt, SparsifyError)) as caught:
        add(journal, 1, "b") if method == "append" else journal.finish(LINES, RESULTS)
    if error is not KeyboardInterrupt:
        assert str(caught.value) == f"cannot write the results to {tmp_path / 'run'}: No space left on device"
    journal._lock.close()  # type: ignore[union-attr]
    ended = ended_run(tmp_path / "run")
    assert (ended is not None) == (method == "finish" and failing == ENDED)
    again = Journal.of_ended(tmp_path / "run", ended) if ended else Journal.open(tmp_path / "run", "key", ALONE)
    assert [again.has(batch) for batch in (0, 1)] == [True, method == "finish"]
    assert set(again.records) == ({"ä", "b"} if method == "finish" else {"ä"})
    again.finish(LINES, RESULTS)
    assert sorted(os.listdir(tmp_path / "run")) == ["predictions.jsonl", "results.json"]
    assert read(tmp_path / "run" / "predictions.jsonl") == LINES
