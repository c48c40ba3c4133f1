"""`sparsify report`: one HTML page on what other commands measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..charts.extra import require_charts
from ..errors import UsageError
from ..files import cannot_write
from ..patcher.recipe import DEFAULT_RECIPE, check_place

PAGE = "report.html"


@dataclass(frozen=True)
class Written:
    """The page, the folder of its charts and tables, the verdicts on top of it, and what was left out."""

    page: Path
    folder: Path
    verdicts: tuple[str, ...]
    notes: tuple[str, ...]


def write_report(directories: Sequence[Path] | None, output: Path | None) -> Written:
    """Writes the page of what was measured in directories, over an older one.

    directories: by default ./sparsified. output: the page, by default report.html in the first directory; charts and
    tables go to a folder beside it, report-files. SparsifyError without the charting libraries or if it cannot be
    written, UsageError if there is nothing to report or that folder holds anything else.
    """
    require_charts("a report")
    from ..reporting.collect import collect
    from ..reporting.folder import folder_of
    from ..reporting.page import make_page, write_page

    directories = list(directories or [Path(DEFAULT_RECIPE)])
    path = output or directories[0] / PAGE
    if output is not None:
        check_place(path.parent, "report")
    if path.suffix != ".html" or os.path.isdir(path):
        raise UsageError(f"-o names the page, a file such as {PAGE}, not {path}")
    page = make_page(collect(directories))
    folder = folder_of(path)
    try:
        write_page(page, path, folder)
    except OSError as error:
        raise cannot_write("report", path, error) from None
    verdicts = tuple(": ".join(part for part in verdict if part) for verdict in page.verdicts)
    return Written(path, folder, verdicts, page.notes)
