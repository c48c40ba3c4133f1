"""Directories to report on, each made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sweep_directories


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose recommended cell was timed; not to be written to."""
    made = sweep_directories.make_sweep(tmp_path_factory.mktemp("reported") / "sweep")
    written = json.loads((made / "sweep.json").read_text())
    best = written["cells"][-1]
    best["bench"] = str(sweep_directories.make_bench(made / best["directory"]).relative_to(made))
    (made / "sweep.json").write_text(json.dumps(written))
    return made


@pytest.fixture(scope="session")
def tuned(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned recipe with the same cells; not to be written to."""
    return sweep_directories.make_tuned(tmp_path_factory.mktemp("reported") / "tuned", sweep)
