"""The page as one HTML file that loads nothing, and beside it every chart as PNG and every table as CSV."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..charts.files import javascript, save_png, spec, to_svg
from ..charts.theme import config
from ..evaluation.verdict.gate import FAIL, INCONCLUSIVE, PASS
from ..files import write_file
from .bench_chart import bench_section
from .cells import cells_section
from .csv_files import csv_bytes
from .flips import flips_section
from .folder import replace_files
from .found import Cell, Found, largest_saving
from .headline import NONE, NOT_ENDED, headline
from .heat_maps import kept_section, sensitivity_section
from .pareto import pareto_section
from .parts import Section, Table
from .reproduce import reproduce_section

TEMPLATE, SCRIPT = "report.html.j2", "charts.js"
MARKS = {PASS: "✓", FAIL: "✗", INCONCLUSIVE: "?", NONE: "✗", NOT_ENDED: "…"}


@dataclass(frozen=True)
class Page:
    """What is shown, in order. verdicts: a decision and a sentence for each directory."""

    title: str
    verdicts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]

    def tables(self) -> list[Table]:
        """All of them, those of figures first."""
        figures = [figure.table for section in self.sections for figure in section.figures]
        return figures + [table for section in self.sections for table in (*section.tables, *section.files)]


def make_page(found: Sequence[Found]) -> Page:
    """Everything that was found, about one model."""
    cells = [cell for one in found for cell in one.cells]
    best = largest_saving([one.best for one in found if one.best])
    closest = best or _closest(cells)
    sensitivity = next((one.sensitivity for one in found if one.sensitivity), None)
    sections = (
        pareto_section(cells, best),
        cells_section(cells, best),
        bench_section(cells, best),
        kept_section(closest),
        sensitivity_section(sensitivity),
        flips_section(closest),
        reproduce_section(found),
    )
    return Page(
        title=f"{found[0].model[0]}, sparse",
        verdicts=tuple(headline(one) for one in found if one.search or one.best or not best),
        sections=tuple(section for section in sections if section),
        notes=tuple(note for one in found for note in one.notes),
    )


def write_page(page: Page, path: Path, folder: Path) -> None:
    """Writes the page, and its charts and tables into the folder; both are made. OSError leaves the old page,
    UsageError everything."""
    writers: dict[str, Callable[[Path], None]] = {}
    for section in page.sections:
        for figure in section.figures:
            writers[f"{figure.name}.png"] = partial(save_png, figure.chart)
    for table in page.tables():
        writers[f"{table.name}.csv"] = partial(write_file, data=csv_bytes(table))
    replace_files(folder, writers)
    # Last, so that what it links to is there.
    write_file(path, html(page, folder.name).encode("utf-8", errors="replace"))


def html(page: Page, folder: str) -> str:
    """The page. folder: where it looks for PNG and CSV files."""
    figures = [figure for section in page.sections for figure in section.figures]
    charts = {f"chart-{figure.name}": spec(figure.chart) for figure in figures}
    script = _closed(javascript(_read(SCRIPT)))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read(TEMPLATE)).render(
        title=page.title,
        verdicts=page.verdicts,
        sections=page.sections,
        notes=page.notes,
        marks=MARKS,
        folder=folder,
        stills={figure.name: Markup(to_svg(figure.chart, figure.name)) for figure in figures},
        charts=_inline({"config": {"light": config(), "dark": config(dark=True)}, "charts": charts}),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        version=version("hf-sparsify"),
    )


def _closest(cells: Sequence[Cell]) -> Cell | None:
    """Without a recommended recipe the one whose answers are shown: that which loses least, of those that save."""
    judged = [cell for cell in cells if cell.accuracy]
    saving = [cell for cell in judged if cell.saved and cell.saved[0].share > 0] or judged
    return max(saving, key=lambda cell: cell.accuracy.low if cell.accuracy else 0.0, default=None)


def _inline(value: Any) -> Markup:
    """JSON inside a script element, which ends where "</script" stands, whatever the JSON means by it."""
    return Markup(json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _closed(script: str) -> str:
    """The same for JavaScript, whose strings may hold these; they stand nowhere else."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _read(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
