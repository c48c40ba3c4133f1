"""Chromium without a window, for the tests that look at a page as a reader does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; without one the test is skipped, or fails where SPARSIFY_REQUIRE_BROWSER is set."""
    path = shutil.which("chromium")
    if path is None or find_spec("playwright") is None:
        missing = "needs chromium in the PATH, and playwright"
        if os.environ.get("SPARSIFY_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
