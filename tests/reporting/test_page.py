"""The page as a file: whole, safe from what stands in data, and with everything beside it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hf_sparsify.reporting.collect import collect
from hf_sparsify.reporting.found import Flip, Kept
from hf_sparsify.reporting.page import html, make_page, write_page
from made_up_cells import accuracy, cell, found, searched, speed

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--{{ 7*7 }}"


class Reader(HTMLParser):
    """Elements with their attributes, the text of scripts, and all other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def hostile() -> Reader:
    """A page on data that tries to be more than text."""
    flips = (Flip(HOSTILE, True, (HOSTILE,), HOSTILE, HOSTILE, HOSTILE, f"so {HOSTILE} it is"),)
    modules = (Kept(f"{HOSTILE}.0.attn", 0.5, ()),)
    answered = accuracy(flips=flips, modules=modules, data=HOSTILE, metric=HOSTILE)
    timed = speed(1.0, 2.0)
    timed.record.update(model=HOSTILE, method=HOSTILE, command=HOSTILE, environment={HOSTILE: HOSTILE})
    one = cell("a", label=HOSTILE, chain=HOSTILE, reason=HOSTILE, accuracy=answered, speed=timed)
    made = found(one, recommended="a", model=(HOSTILE, "hash"), notes=(HOSTILE,))
    return Reader(html(make_page([made]), "folder"))


def test_data_stays_text(hostile: Reader) -> None:
    names = {name for name, _ in hostile.elements}
    assert "img" not in names
    assert not [
        attribute for _, attributes in hostile.elements for attribute in attributes if attribute.startswith("on")
    ]
    assert len(hostile.scripts) == 2, "the charts and the program"
    assert HOSTILE in hostile.text
    assert "{{ 7*7 }}" in hostile.text
    assert HOSTILE in json.dumps(json.loads(hostile.scripts[0]), ensure_ascii=False).replace('\\"', '"')


def test_only_the_pages_own_script_may_run(hostile: Reader) -> None:
    (policy,) = [
        made["content"] for name, made in hostile.elements if made.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert "default-src 'none'" in policy
    digest = base64.b64encode(hashlib.sha256(hostile.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_nothing_is_loaded_from_elsewhere(hostile: Reader) -> None:
    for _, attributes in hostile.elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert not re.match(r"\w+:|//", attributes.get(name) or "")


def test_headings_tables_and_links(sweep: Path) -> None:
    page = Reader(html(make_page(collect([sweep])), "report"))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is left out"
    targets = {attributes.get("id") for _, attributes in page.elements}
    anchors = [href[1:] for _, made in page.elements if (href := made.get("href") or "").startswith("#")]
    assert len(anchors) >= 5
    assert set(anchors) <= targets
    scrolled = [made for _, made in page.elements if made.get("class") == "scroll"]
    assert scrolled
    assert all(made["tabindex"] == "0" and made["role"] == "region" and made["aria-label"] for made in scrolled)
    ids = [made["id"] for _, made in page.elements if "id" in made]
    assert len(ids) == len(set(ids))


def test_files_beside_the_page(sweep: Path, tmp_path: Path) -> None:
    page = make_page(collect([sweep]))
    write_page(page, tmp_path / "page.html", tmp_path / "page")
    written = {path.name for path in (tmp_path / "page").iterdir()}
    assert {"pareto.png", "pareto.csv", "speed.png", "cells.csv", "flips.csv", "environment.csv"} <= written
    for figure in (figure for section in page.sections for figure in section.figures):
        assert (tmp_path / "page" / f"{figure.name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(list(csv.reader((tmp_path / "page" / f"{figure.name}.csv").open(newline="")))) > 1
    linked = re.findall(r'href="(page/[^"]+)"', (tmp_path / "page.html").read_text())
    assert linked
    assert all((tmp_path / link).exists() for link in linked)


def test_charts_are_there_without_javascript(sweep: Path) -> None:
    page = make_page(collect([sweep]))
    figures = [figure for section in page.sections for figure in section.figures]
    made = html(page, "report")
    assert len(figures) >= 3
    assert made.count('<svg xmlns="http://www.w3.org/2000/svg"') == len(figures)
    shown = json.loads(Reader(made).scripts[0])
    assert shown["charts"].keys() == {f"chart-{figure.name}" for figure in figures}
    assert all(chart["description"] for chart in shown["charts"].values())


def test_without_a_recommended_recipe_the_answers_of_the_closest_are_shown() -> None:
    near, far = (cell(name, accuracy=accuracy(lost), decision="FAIL") for name, lost in (("near", -3.0), ("far", -9.0)))
    page = make_page([found(far, near)])
    (kept,) = [section for section in page.sections if section.name == "kept"]
    assert "top-k near" in kept.sentences[0]


def test_of_several_directories_the_largest_saving_is_marked() -> None:
    first, second = searched(cell(saved=0.5), recommended="a"), searched(cell(saved=0.8), recommended="a")
    page = make_page([first, second])
    (pareto,) = page.sections[0].figures
    assert pareto.table.marked == 1
    assert next(section for section in page.sections if section.name == "cells").tables[0].marked == 1
    assert [decision for decision, _ in page.verdicts] == ["PASS", "PASS"]
