"""The documentation as a site: it builds, its links lead somewhere, and it loads nothing from a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from conftest import ROOT, environment

from laurepro import ops


class Page(HTMLParser):
    """What a page loads, where it leads, and what can be led to in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {k: v or "" for k, v in attrs}
        self.anchors |= {of[k] for k in ("id", "name") if k in of}
        if "src" in of:
            self.loads.append(of["src"])
        if "href" in of:
            kept = self.leads if tag == "a" or of.get("rel") in ("canonical", "next", "prev") else self.loads
            kept.append(of["href"])

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Its pages. mkdocs is strict: a link, an anchor or an object of the API that is not there fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # Nothing is to be reached: a proxy that is not there stands before every address.
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "all")}
    env = environment(NO_MKDOCS_2_WARNING="1", **nowhere)
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return {file: Page(file) for file in folder.glob("*.html")}


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"[\w\-]+\.md", str(yaml.safe_load(text)["nav"]))
    there = {f.name for f in (ROOT / "docs").glob("*.md")} | {"index.md", "contributing.md", "changelog.md"}
    assert sorted(listed) == sorted(there)


@pytest.mark.site
def test_its_links_lead_somewhere(site: dict[Path, Page]) -> None:
    assert len(site) > 15
    for file, page in site.items():
        if file.name == "404.html":
            continue  # its links are from the root of a server
        for link in page.leads:
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            to = Path(os.path.normpath(file.parent / target)) if target else file
            assert to.exists(), f"{file.name}: {link}"
            if anchor and to in site and not anchor.startswith("__"):
                assert anchor in site[to].anchors, f"{file.name}: {link}"


@pytest.mark.site
def test_it_loads_nothing_from_a_network(site: dict[Path, Page]) -> None:
    for file, page in site.items():
        assert [x for x in page.loads if re.match(r"([a-z]+:)?//", x)] == [], file.name
        if file.name != "404.html":
            assert [x for x in page.loads if not x.startswith("data:") and not (file.parent / x).exists()] == [], (
                file.name
            )


@pytest.mark.site
def test_the_api_is_that_of_the_code(site: dict[Path, Page]) -> None:
    (page,) = (p for f, p in site.items() if f.name == "api.html")
    wanted = {f"laurepro.ops.{name}" for name in ops.__all__}
    wanted |= {"laurepro.nn.LocationAwareUpsample", "laurepro.report.compare", "laurepro.spec.fields.Experiment"}
    assert wanted <= page.anchors, wanted - page.anchors
    assert "offset_weight" in page.text and "Raises" in page.text


@pytest.mark.site
@pytest.mark.browser
def test_search_works_in_a_site_that_is_opened_as_a_file(site: dict[Path, Page]) -> None:
    from playwright.sync_api import sync_playwright

    program = next(p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n)))
    (file,) = (f for f in site if f.name == "report.html")
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        found = page.locator(".md-search-result__item")
        deadline = time.monotonic() + 120  # on a busy machine, words that are typed before the index is read are lost
        while not found.count() and time.monotonic() < deadline:
            page.fill(".md-search__input", "")
            page.locator(".md-search__input").press_sequentially("offset-guided")
            page.wait_for_timeout(1000)
        assert found.count()
        assert "matching document" in page.inner_text(".md-search-result__meta")
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
