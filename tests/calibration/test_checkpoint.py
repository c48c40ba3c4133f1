"""What a killed calibration leaves behind, and what goes on from it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hf_sparsify.calibration.checkpoint import Checkpoint
from hf_sparsify.calibration.histogram import ScoreHistogram
from hf_sparsify.calibration.histogram_file import save_histograms
from hf_sparsify.calibration.run import Observed
from hf_sparsify.patcher.methods.budget import Budget
from hf_sparsify.processes import Processes
from score_chunks import chunk, observed, random, same

BUDGET = Budget(k=4)


def nothing() -> Observed:
    return Observed({"a": ScoreHistogram(BUDGET, "pre-softmax")})


def seen(*items: int) -> Observed:
    """What is counted on these items; an item is the seed of its scores."""
    return Observed({"a": observed(BUDGET, [chunk(random(item)) for item in items])}, list(map(str, items)))


def test_it_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "new", "key").save(seen(1, 2))
    resumed = nothing()
    checkpoint = Checkpoint(tmp_path / "new", "key")
    assert checkpoint.resume(resumed) == ["1", "2"]
    resumed.add(seen(3))
    assert same(resumed.histograms["a"], seen(1, 2, 3).histograms["a"])
    checkpoint.remove()
    assert list((tmp_path / "new").iterdir()) == []
    assert checkpoint.resume(nothing()) == []


@pytest.mark.parametrize("what", ["another run", "another module", "cut short"])
def test_what_does_not_fit_is_ignored_and_replaced(what: str, tmp_path: Path) -> None:
    Checkpoint(tmp_path, "other" if what == "another run" else "key").save(seen(1, 2))
    [path] = tmp_path.iterdir()
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:-50])
    fresh = nothing() if what != "another module" else Observed({"b": ScoreHistogram(BUDGET)})
    assert Checkpoint(tmp_path, "key").resume(fresh) == []
    assert fresh.items == []
    Checkpoint(tmp_path, "key").save(seen(3))
    assert list(tmp_path.iterdir()) == [path]
    assert Checkpoint(tmp_path, "key").resume(nothing()) == ["3"]


def test_half_an_item_and_nothing_are_not_saved(tmp_path: Path) -> None:
    half = seen(1)
    half.whole = False
    for state in (half, nothing()):
        Checkpoint(tmp_path, "key").save(state)
    Checkpoint(None, "key").save(seen(1))
    assert Checkpoint(None, "key").resume(nothing()) == []
    assert list(tmp_path.iterdir()) == []


def test_another_calibrations_file_stays(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "other", Alone(1, 2)).save(seen(1, 2))
    [foreign] = tmp_path.iterdir()
    own = Checkpoint(tmp_path, "key")
    own.remove()
    assert list(tmp_path.iterdir()) == [foreign]
    own.save(seen(3))
    assert own.resume(nothing()) == ["3"]
    assert foreign.exists()
    own.remove()
    assert list(tmp_path.iterdir()) == [foreign]
    assert Checkpoint(tmp_path, "other").resume(nothing()) == ["1", "2"]


def test_another_calibrations_counts_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint(tmp_path, "other").save(seen(1))
    monkeypatch.setattr("hf_sparsify.calibration.checkpoint.load_histograms", None)
    assert Checkpoint(tmp_path, "key").resume(nothing()) == []


def test_a_file_without_items_is_ignored(tmp_path: Path) -> None:
    save_histograms(seen(1).histograms, tmp_path / ".calibrating-0.safetensors", {"key": "key"})
    assert Checkpoint(tmp_path, "key").resume(nothing()) == []


def test_the_others_files_stay_until_theirs_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        Checkpoint(tmp_path, "key", Alone(rank, 2)).save(seen(rank + 1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patching:
        patching.setattr("hf_sparsify.calibration.checkpoint.save_histograms", full)
        assert Checkpoint(tmp_path, "key").resume(nothing()) == ["1", "2"]
    assert Checkpoint(tmp_path, "key").resume(nothing()) == ["1", "2"]


class Alone(Processes):
    """One of several processes that waits for nobody."""

    def wait(self) -> None:
        pass


def test_several_processes(tmp_path: Path) -> None:
    for rank, items in enumerate([(1, 4), (2, 5), (5, 6)]):  # the third overlaps with the second
        Checkpoint(tmp_path, "key", Alone(rank, 3)).save(seen(*items))
    second = nothing()
    assert Checkpoint(tmp_path, "key", Alone(1, 2)).resume(second) == ["1", "4", "2", "5"]
    assert second.items == []
    first = nothing()
    assert Checkpoint(tmp_path, "key", Alone(0, 2)).resume(first) == ["1", "4", "2", "5"]
    assert same(first.histograms["a"], seen(1, 4, 2, 5).histograms["a"])
    assert [path.name for path in tmp_path.iterdir()] == [".calibrating-0.safetensors"]


def test_a_full_disk_costs_the_checkpoint_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(tmp_path / "file", "key")
    with caplog.at_level(logging.WARNING):
        checkpoint.save(seen(1))
        checkpoint.save(seen(1))
    assert len(caplog.records) == 1
    assert "cannot keep what is calibrated so far" in caplog.text


def test_it_saves_at_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.save_at_times(seen(1))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("hf_sparsify.calibration.checkpoint.SECONDS", 0.0)
    checkpoint.save_at_times(seen(1))
    assert len(list(tmp_path.iterdir())) == 1
