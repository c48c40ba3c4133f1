"""The page in a browser: drawn, without errors, without a network, at every width, by keyboard and on paper."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from hf_sparsify.reporting.collect import collect
from hf_sparsify.reporting.folder import folder_of
from hf_sparsify.reporting.page import make_page, write_page

pytestmark = pytest.mark.slow

# Shapes that Vega draws data with; axes and legends are in other groups.
MARKS = ".mark-symbol.role-mark path, .mark-rect.role-mark path, .mark-line.role-mark path"
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def page_file(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a tuned recipe, which has all sections."""
    place = tmp_path_factory.mktemp("page") / "report.html"
    write_page(make_page(collect([tuned])), place, folder_of(place))
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Opened]:
    """A function that opens the page; at the end nothing may have been complained about or asked for."""
    said: list[str] = []
    asked: list[str] = []
    with _contexts(browser) as new:

        def open_page(**options: Any) -> Any:
            page = new(**options).new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(page_file.as_uri())
            if options.get("java_script_enabled", True):
                page.wait_for_selector("html[data-drawn]", state="attached")
            return page

        yield open_page
    assert said == []
    assert set(asked) == {page_file.as_uri()}


@contextmanager
def _contexts(browser: Any) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def new(**options: Any) -> Any:
        made.append(browser.new_context(**options))
        return made[-1]

    try:
        yield new
    finally:
        for context in made:
            context.close()


def test_every_chart_is_drawn_with_data(opened: Opened) -> None:
    page = opened(viewport=DESKTOP)
    charts = page.locator("figure")
    assert charts.count() >= 4
    for index in range(charts.count()):
        figure = charts.nth(index)
        assert figure.locator(".live").get_attribute("aria-label")
        boxes = figure.locator(f".live :is({MARKS})").evaluate_all("all => all.map(one => one.getBBox().width > 0)")
        assert any(boxes), figure.get_attribute("id")
        assert not figure.locator(".still").is_visible()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP])
def test_the_page_fits_its_width(opened: Opened, viewport: dict[str, int]) -> None:
    page = opened(viewport=viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.locator("summary").evaluate_all("all => all.forEach(one => one.parentElement.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for svg in page.locator(".live svg").all():
        assert svg.bounding_box()["width"] <= viewport["width"]


def test_keys_reach_everything(opened: Opened) -> None:
    page = opened(viewport=DESKTOP)
    reachable = "a[href], summary, [tabindex='0']"
    hidden = "details:not([open]) > :not(summary)"
    wanted = page.evaluate(
        "([all, hidden]) => [...document.querySelectorAll(all)].filter(one => !one.closest(hidden)).length",
        [reachable, hidden],
    )
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "all => { const at = document.activeElement; const style = getComputedStyle(at);"
                " return at === document.body ? -1 : style.outlineStyle === 'none' ? -2"
                " : [...document.querySelectorAll(all)].indexOf(at) }",
                reachable,
            )
        )
    assert -2 not in reached, "what has the focus shows it"
    assert len(reached - {-1}) == wanted
    page.locator("summary").first.press("Enter")
    assert page.locator("details[open] table").first.is_visible()


def test_the_skip_link_leads_to_the_content(opened: Opened) -> None:
    page = opened(viewport=DESKTOP)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_dark_and_light_differ_and_follow_the_reader(opened: Opened) -> None:
    page = opened(viewport=DESKTOP, color_scheme="light")
    light = page.screenshot()
    background = "getComputedStyle(document.querySelector('.live svg')).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-drawn=dark]", state="attached")
    assert page.evaluate(background) == "rgb(22, 25, 29)"
    assert page.screenshot() != light


def test_paper_shows_the_pictures_on_white(opened: Opened) -> None:
    page = opened(viewport=DESKTOP, color_scheme="dark")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    for figure in page.locator("figure").all():
        assert figure.locator(".still").is_visible()
        assert not figure.locator(".live").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_without_javascript_the_pictures_are_shown(opened: Opened) -> None:
    page = opened(java_script_enabled=False)
    for figure in page.locator("figure").all():
        assert figure.locator(".still svg").is_visible()


def test_pictures_are_no_blank_paper(page_file: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for picture in folder_of(page_file).glob("*.png"):
        image = pillow.open(io.BytesIO(picture.read_bytes())).convert("RGB")
        assert len(image.getcolors(maxcolors=image.width * image.height)) > 3, picture.name
