"""`sparsify sweep`: cells that are refused or fail leave the others, and the same command tries them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Sparsify, refused
from hf_sparsify.errors import DataError
from sweep_commands import ASK, BASE, TOP_K, Asked, cells, document, statuses


def test_cells_that_cannot_be_planned(sparsify: Sparsify, work: Path) -> None:
    done = sparsify(*BASE, "--methods", "clustered,top-k", "--clusters", "4,2", "--keep", "0.5")
    assert done.code == 0
    assert statuses() == ["refused", "refused", "done"]
    assert "causal self-attention" in cells()["clustered-clusters-4"]["error"]
    assert "clustered, 4 clusters; clustered, 2 clusters: refused: clustered attention is for" in " ".join(
        done.out.split()
    )
    assert cells()["top-k-keep-0.5"]["verdict"]["level"] == 0.025
    refused(sparsify(*BASE, "--methods", "clustered", "-o", "out"), 4, "bidirectional self-attention only")
    assert not (work / "out").exists()


def test_a_cell_that_fails_leaves_the_others(sparsify: Sparsify, asked: Asked) -> None:
    asked.failing = 4  # of the second batch the second cell
    done = sparsify(*TOP_K, "--batch-size", "2")
    assert done.code == 0
    assert statuses() == ["done", "failed", "done"]
    assert cells()["top-k-keep-0.5"]["error"] == "no kernel for this"
    assert cells()["top-k-keep-0.2"]["verdict"]["decision"] == "PASS", "what was not run is left out of the sequence"
    assert asked.patched == 3 + 3 + 2
    assert "top-k, keep = 0.5: failed: no kernel for this" in done.out
    asked.patched, asked.failing = 0, None
    again = sparsify(*TOP_K, "--batch-size", "2")
    assert statuses() == ["done", "done", "done"]
    assert asked.patched == 2, "only the failed cell goes on"
    assert "failed" not in again.out


def test_out_of_memory_is_one_sentence(sparsify: Sparsify, asked: Asked) -> None:
    asked.failing, asked.error = 1, RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
    assert sparsify(*TOP_K).code == 0
    assert cells()["top-k-keep-0.5"]["error"].startswith("out of memory: lower --batch-size")


def test_a_smaller_batch_goes_on_in_the_same_sweep(sparsify: Sparsify, asked: Asked) -> None:
    asked.failing, asked.error = 1, RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
    assert sparsify(*TOP_K).code == 0
    asked.failing = None
    assert sparsify(*TOP_K, "--batch-size", "3").code == 0
    assert statuses() == ["done"] * 3


def test_no_sparse_cell_could_be_run(sparsify: Sparsify, asked: Asked) -> None:
    asked.failing = 1
    done = sparsify(*BASE, "--methods", "top-k", "--keep", "1.0,0.5")
    assert done.code == 1
    assert statuses() == ["done", "failed"]
    assert "recommended: none" in done.out


def test_an_error_that_is_no_cell_s_ends_all(sparsify: Sparsify, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.failing, asked.error = 1, ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        sparsify(*TOP_K)
    assert statuses() == ["waiting"] * 3
    assert document()["ended"] is False
    asked.failing = None
    assert sparsify(*TOP_K).code == 0
    assert statuses() == ["done"] * 3


def test_calibration_that_fails(sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise DataError("no row sees more keys than its k")

    with monkeypatch.context() as patching:
        patching.setattr("hf_sparsify.commands.calibrator.calibrate_target", failing)
        assert sparsify(*ASK).code == 0
    assert statuses() == ["done", "done", "done", "done", "failed", "failed"]
    assert cells()["top-theta-keep-0.2"]["error"] == "calibration failed: no row sees more keys than its k"
    assert cells()["top-theta-keep-1.0"]["verdict"]["decision"] == "PASS"
    assert sparsify(*ASK).code == 0
    assert statuses() == ["done"] * 6


def test_no_cell_could_be_made(sparsify: Sparsify) -> None:
    done = sparsify(*BASE, "--methods", "top-theta", "--k", "5000", "--calibrate-on", "train.jsonl", "--samples", "4")
    assert (done.code, statuses()) == (1, ["failed"])
    assert "top-theta, k = 5000: failed: calibration failed: no row" in done.out
    assert "recommended: none" in done.out
    assert document()["ended"] is True
