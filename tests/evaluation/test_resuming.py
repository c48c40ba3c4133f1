"""A run goes on where it was stopped, with any number of processes, and ends in the same lines and counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from both_arms import plan_for
from hf_sparsify.errors import SparsifyError
from hf_sparsify.evaluation.formats import read_items
from hf_sparsify.evaluation.journal import Journal
from hf_sparsify.evaluation.results import prediction_lines
from hf_sparsify.evaluation.run import Contender, Evaluation, evaluate
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.processes import Processes

ALONE = Processes()


class Unconnected(Processes):
    """One of several processes that need not wait for the others, because they run one after the other here."""

    def wait(self) -> None:
        pass


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    names = ("bert", "bert-qa", "llama")
    return {name: load_model(str(tiny_language_models.save(name, folder / name))) for name in names}


def run(
    loaded: LoadedModel, tmp_path: Path, journal: Journal, processes: Processes = ALONE, stop: int | None = None
) -> Evaluation:
    """An evaluation of 11 questions in batches of 2; stop: dies after so many items."""
    file = tmp_path / "q.jsonl"
    if not file.exists():
        tiny_language_models.save_questions(file, 11)
    task = task_for(loaded, read_items(file), TaskOptions(batch_size=2, max_new_tokens=3))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if stop is not None and done >= stop:
            raise Killed

    contender = Contender(plan_for(loaded, TopK(k=3)), journal=journal)
    return evaluate(loaded, [contender], task, processes=processes, advance=advance)[0]


def killed(loaded: LoadedModel, tmp_path: Path, stop: int, processes: Processes = ALONE) -> None:
    journal = Journal.open(tmp_path / "run", "key", processes)
    with pytest.raises(Killed):
        run(loaded, tmp_path, journal, processes, stop)
    if journal._lock is not None:
        journal._lock.close()  # as the end of the process does


def outcome(evaluation: Evaluation) -> dict[str, Any]:
    """All that a kill must not change."""
    journal = evaluation.journal
    return {"lines": prediction_lines(evaluation), "kept": journal.meter.summary(), "done": sorted(journal.done)}


@pytest.mark.parametrize("model", ["bert", "bert-qa", "llama"])
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_killed_run_goes_on(model: str, stop: int, tmp_path: Path, models: dict[str, LoadedModel]) -> None:
    expected = outcome(run(models[model], tmp_path, Journal()))
    killed(models[model], tmp_path, stop)
    again = Journal.open(tmp_path / "run", "key", ALONE)
    assert len(again.done) == (stop + 1) // 2
    assert outcome(run(models[model], tmp_path, again)) == expected


@pytest.mark.parametrize("file", ["predictions.jsonl", "batches.jsonl"])
@pytest.mark.parametrize("cut", [2, 40, 400])
def test_lines_that_are_cut_short_are_done_again(
    file: str, cut: int, tmp_path: Path, models: dict[str, LoadedModel]
) -> None:
    expected = outcome(run(models["llama"], tmp_path, Journal()))
    killed(models["llama"], tmp_path, 7)
    path = tmp_path / "run" / file
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal.open(tmp_path / "run", "key", ALONE)
    assert len(again.done) < 4
    assert outcome(run(models["llama"], tmp_path, again)) == expected


def test_another_number_of_processes_goes_on(tmp_path: Path, models: dict[str, LoadedModel]) -> None:
    expected = outcome(run(models["llama"], tmp_path, Journal()))
    killed(models["llama"], tmp_path, 3, Unconnected(0, 3))
    killed(models["llama"], tmp_path, 2, Unconnected(1, 3))
    assert (tmp_path / "run" / "predictions.rank1.jsonl").exists()
    again = Journal.open(tmp_path / "run", "key", ALONE)
    assert again.work == {0: 4, 1: 2}
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == ["batches.jsonl", "predictions.jsonl", "run.json"]
    found = run(models["llama"], tmp_path, again)
    assert outcome(found) == expected
    assert sum(found.journal.work.values()) == 11


def test_batches_are_shared_without_overlap(tmp_path: Path, models: dict[str, LoadedModel]) -> None:
    journals = [Journal() for _ in range(3)]
    for rank, journal in enumerate(journals[1:], start=1):
        run(models["llama"], tmp_path, journal, Unconnected(rank, 3))
    with pytest.raises(SparsifyError, match="7 items have no prediction"):  # those of the other two
        run(models["llama"], tmp_path, journals[0], Unconnected(0, 3))
    ids = [id_ for journal in journals for id_ in journal.records]
    assert sorted(ids) == sorted(f"q{index}" for index in range(11))


def test_an_ended_run_is_read_and_not_run(
    tmp_path: Path, models: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(models["bert"], tmp_path, Journal.open(tmp_path / "run", "key", ALONE))
    results = {
        "processes": {"items": {"0": 11}},
        "seconds": {"dense": 1.0, "patched": 2.0},
        "dense_from_cache": 0,
        "kept": first.journal.meter.summary(),
    }
    lines = prediction_lines(first)
    first.journal.finish(lines, results)
    monkeypatch.setattr("hf_sparsify.evaluation.tasks.retrieval.embed", None)
    again = run(models["bert"], tmp_path, Journal.of_ended(tmp_path / "run", results))
    assert prediction_lines(again) == lines
