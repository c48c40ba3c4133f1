"""Files beside a page: those of a former report are replaced, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.reporting.folder import LIST, folder_of, replace_files


def write(path: Path) -> None:
    path.write_text("new")


def test_files_of_a_former_report_go(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "page.html")
    replace_files(folder, {"a.png": write, "b.csv": write})
    (folder / "a.png").write_text("old")
    (folder / ".hidden").write_text("")
    replace_files(folder, {"a.png": write})
    assert {path.name for path in folder.iterdir()} == {"a.png", ".hidden", LIST}
    assert (folder / "a.png").read_text() == "new"


def test_a_report_that_was_stopped_does_not_block_the_next(tmp_path: Path) -> None:
    def stop(path: Path) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        replace_files(tmp_path, {"a.png": write, "b.csv": stop})
    replace_files(tmp_path, {"c.csv": write})
    assert {path.name for path in tmp_path.iterdir()} == {"c.csv", LIST}


def test_a_folder_with_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds mine\.txt, which no report wrote: give -o another name"):
        replace_files(tmp_path, {"mine.txt": write})
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_list_reaches_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / LIST).write_text("../outside\n")
    replace_files(folder, {"a.png": write})
    assert (tmp_path / "outside").exists()
