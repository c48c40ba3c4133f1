"""`sparsify report`: where the page goes, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Sparsify, contents, refused


@pytest.fixture
def evaluated(sparsify: Sparsify, recipe: Path) -> Path:
    """./sparsified with results."""
    assert sparsify("eval", "-d", "q.jsonl", "--max-new-tokens", "2").code in (0, 3)
    return recipe


def test_a_recipe(sparsify: Sparsify, evaluated: Path, work: Path) -> None:
    before = contents(evaluated)
    done = sparsify("report")
    assert done.code == 0, done.err
    assert done.out.startswith(("PASS: ", "FAIL: ", "INCONCLUSIVE: "))
    assert done.err == "wrote sparsified/report.html; charts and tables are in sparsified/report-files\n"
    page = (evaluated / "report.html").read_text()
    assert "sparsify eval -d q.jsonl --max-new-tokens 2" in page
    assert (evaluated / "report-files" / "cells.csv").exists()
    made = {name for name in contents(evaluated) if not name.startswith("report")}
    assert {name: contents(evaluated)[name] for name in made} == before, "what was measured stays as it was"
    assert sparsify("validate").code == 0
    (evaluated / "report.html").write_text("old")
    assert sparsify("report", "sparsified", "-q").err == ""
    assert (evaluated / "report.html").read_text() == page


def test_where_the_page_goes(sparsify: Sparsify, evaluated: Path, work: Path) -> None:
    (results,) = evaluated.glob("eval/*")
    assert sparsify("report", str(results), "-o", "made/page.html").code == 0
    assert (work / "made" / "page.html").exists()
    assert (work / "made" / "page-files" / "cells.csv").exists()
    assert not (evaluated / "report.html").exists()


def test_a_page_with_the_name_of_a_recipe(sparsify: Sparsify, evaluated: Path, work: Path) -> None:
    before = contents(evaluated)
    assert sparsify("report", "-o", "sparsified.html").code == 0
    assert contents(evaluated) == before
    assert (work / "sparsified-files" / "cells.csv").exists()


def test_what_is_left_out_is_said(sparsify: Sparsify, evaluated: Path) -> None:
    place = evaluated / "bench" / "now"
    place.mkdir(parents=True)
    (place / "bench.json").write_text(json.dumps({"lengths": 3}))
    done = sparsify("report")
    assert done.code == 0
    assert "warning: left out: sparsified/bench/now/bench.json is not what bench writes" in done.err


def test_refusals(sparsify: Sparsify, recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(sparsify("report", "nowhere"), 2, "there is no directory nowhere: name a sweep directory")
    refused(sparsify("report"), 2, "sparsified holds nothing to report")
    refused(sparsify("report", "-o", "page.pdf"), 2, "-o names the page, a file such as report.html, not page.pdf")
    monkeypatch.setattr("hf_sparsify.commands.report_page.require_charts", _missing)
    refused(sparsify("report"), 1, "pip install 'hf-sparsify[plot]'")


def test_a_place_that_cannot_be_written(sparsify: Sparsify, evaluated: Path, work: Path) -> None:
    (work / "file").write_text("")
    refused(sparsify("report", "-o", "file/page.html"), 1, "cannot write the report to file: it is a file")


def _missing(what: str) -> None:
    from hf_sparsify.charts import extra
    from hf_sparsify.errors import SparsifyError

    assert extra.charts_installed()
    raise SparsifyError(f"{what} needs the charting libraries: pip install 'hf-sparsify[plot]'")
