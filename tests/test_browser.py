"""The page in headless Chromium: phone and desktop, light and dark, by keyboard, for a screen reader, on paper."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from planted import FOLDER, plant
from test_report_page import NASTY, make_image

from laurepro import report

pytestmark = pytest.mark.browser
VIEWS = [
    pytest.param((width, scheme), id=f"{name}-{scheme}")
    for name, width in (("phone", 390), ("desktop", 1440))
    for scheme in ("light", "dark")
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of tests/data/planted with a figure, opened from disk."""
    folder = tmp_path_factory.mktemp("page")
    before = os.environ.get("LAUREPRO_EXPERIMENTS")
    os.environ["LAUREPRO_EXPERIMENTS"] = str(FOLDER / "experiments")
    try:
        plant(folder / "results", folder / "runs")
        sources = report.gather(results=folder / "results", runs=folder / "runs")
        make_image(sources, folder / "results" / "figures" / "noise.png", size=900)
        sources = report.gather(results=folder / "results", runs=folder / "runs")
        (folder / "report.html").write_text(report.render_page(sources, "html", folder))
    finally:
        if before is None:
            del os.environ["LAUREPRO_EXPERIMENTS"]
        else:
            os.environ["LAUREPRO_EXPERIMENTS"] = before
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = next(p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n)))
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page with what it said to the console and asked of the network."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str, **more: Any) -> None:
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, **more)
        self.page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def open_all(self) -> None:
        self.page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")


@pytest.fixture(params=VIEWS)
def opened(request: pytest.FixtureRequest, browser: Any, page_file: Path) -> Iterator[Opened]:
    found = Opened(browser, page_file, *request.param)
    yield found
    found.page.context.close()


def test_it_shows_without_an_error_a_request_or_a_horizontal_scroll_bar(opened: Opened, tmp_path: Path) -> None:
    for state in ("closed", "open"):
        if state == "open":
            opened.open_all()
        page = opened.page
        wide, inside = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= inside
        shot = tmp_path / f"{state}.png"
        page.screenshot(path=shot, full_page=True)
        assert shot.stat().st_size > 20_000
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    assert NASTY in opened.page.inner_text("figure.image")


def test_colours_follow_the_system(browser: Any, page_file: Path) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        found = Opened(browser, page_file, 800, scheme)
        colour = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = sum(map(int, colour.strip("rgb()").split(",")))
        found.page.context.close()
    assert grounds["light"] > 700 > 120 > grounds["dark"]


def test_accessibility(opened: Opened) -> None:
    """What axe-core knows of: contrast, names, roles, order of headings, focus."""
    from axe_playwright_python.sync_playwright import Axe

    opened.open_all()
    found = Axe().run(opened.page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == []


@pytest.mark.parametrize("width", [390, 1440])
def test_every_cell_is_reached_by_keyboard(browser: Any, page_file: Path, width: int) -> None:
    """Tab to a fold and open it with Enter, Tab to a table, and from cell to cell with the arrows."""
    page = Opened(browser, page_file, width, "light").page
    page.evaluate("document.querySelector('nav details').open = false")
    cells = page.evaluate(
        "[...document.querySelectorAll('[role=grid] :is(th, td)')].map((c, i) => c.dataset.number = i).length"
    )
    tables = page.evaluate("document.querySelectorAll('[role=grid]').length")
    where = (
        "(() => { const a = document.activeElement; return [a.tagName, a.dataset.number ?? '',"
        " a.closest?.('table')?.rows.length ?? 0, a.closest?.('tr')?.cells.length ?? 0] })()"
    )
    reached: set[str] = set()
    for _ in range(40 * tables):
        page.keyboard.press("Tab")
        tag, number, lines, columns = page.evaluate(where)
        if tag == "BODY":
            break
        if tag == "SUMMARY":
            page.keyboard.press("Enter")
        elif number:
            page.keyboard.press("Control+Home")
            for line in range(lines):
                page.keyboard.press("Home")
                for _ in range(columns):
                    reached.add(page.evaluate(where)[1])
                    page.keyboard.press("ArrowRight")
                if line < lines - 1:
                    page.keyboard.press("ArrowDown")
    assert len(reached) == cells > 300
    page.context.close()


def test_a_number_leads_to_its_records_by_enter(browser: Any, page_file: Path) -> None:
    page = Opened(browser, page_file, 1440, "light").page
    link = page.locator('td a[href="#from-table9-field-higher"]').first
    assert not page.locator("#from-table9-field-higher").is_visible()
    link.evaluate("a => a.closest('td').focus()")
    page.evaluate("document.activeElement.dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))")
    page.keyboard.press("Enter")
    page.locator("#from-table9-field-higher").wait_for(state="visible", timeout=5000)
    assert page.url.endswith("#from-table9-field-higher")
    page.context.close()


def test_without_scripts_everything_is_there(browser: Any, page_file: Path) -> None:
    page = Opened(browser, page_file, 390, "light", java_script_enabled=False).page
    assert "51.12 ± 0.28" in page.locator("main").inner_text()
    page.context.close()


def test_it_prints_with_everything_unfolded(browser: Any, page_file: Path) -> None:
    page = Opened(browser, page_file, 1440, "dark").page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.querySelectorAll('main details:not([open])').length") == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 50_000
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('main details[open]').length") == 0
    page.context.close()
