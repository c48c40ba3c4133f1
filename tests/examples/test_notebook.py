"""The notebook runs from top to bottom, shows what it says, and is kept without outputs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tour.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = re.sub(r"\x1b\[[\d;]*m", "", "".join(output.get("text", "") for output in outputs))
    assert "wrote tour" in text
    assert "PASS: the drop is at most" in text
    assert "pizza" in text
    assert "tour-sweep/report.html" in text
    assert "Traceback" not in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "tour-sweep" / "report.html").is_file()
