"""The folder beside a page: its charts and tables, and a list of them by which a later report knows what to remove."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import UsageError
from ..files import write_file

LIST = "written-by-report.txt"


def folder_of(page: Path) -> Path:
    """Where charts and tables of a page go."""
    return page.with_name(f"{page.stem}-files")


def replace_files(folder: Path, writers: dict[str, Callable[[Path], None]]) -> None:
    """Writes files, each by its name, and removes what a former report wrote there and this one does not.

    UsageError if the folder holds anything that no report wrote, but for hidden files; OSError if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    former = _listed(folder)
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if foreign := sorted(present - former - {LIST}):
        raise UsageError(f"{folder} holds {foreign[0]}, which no report wrote: give -o another name")
    # First, so that the files of a report that is stopped half-way are known for what they are.
    _write_list(folder, former | writers.keys())
    for name, write in writers.items():
        write(folder / name)
    for name in (former & present) - writers.keys():
        (folder / name).unlink()
    _write_list(folder, writers)


def _listed(folder: Path) -> set[str]:
    try:
        return set((folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines()) - {LIST}
    except FileNotFoundError:
        return set()


def _write_list(folder: Path, names: Iterable[str]) -> None:
    write_file(folder / LIST, "".join(f"{name}\n" for name in sorted(names)).encode())
