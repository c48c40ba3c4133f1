"""What the documents link to is there, and nothing in them was left to be filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
UNFINISHED = re.compile(r"\b(TODO|TBD|FIXME|[A-Z]+_TABLE|QUALITY\d*)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_finished(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []
    assert UNFINISHED.findall(text) == []
