"""The pages in a real browser: every section visible, no error, nothing wider than a phone."""

from __future__ import annotations

import os
import shutil

import pytest

from compressor.report.frontier import frontier_page
from compressor.report.html import report_page
from compressor.report.overview import overview_page
from compressor.report.runs import ComparedRun, ComparedRuns, runs_page

from .test_frontier import SWEEP
from .test_html import HOSTILE, SECTIONS, whole
from .test_overview import JOBS, REPORTS

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGES = {
    "report": (report_page(whole(model=HOSTILE)), SECTIONS),
    "sweep": (
        frontier_page(SWEEP),
        ("summary", "frontier", "landmarks", "points", "take", "reproduce"),
    ),
    "overview": (
        overview_page("jobs.yaml", JOBS, REPORTS),
        ("summary", "missing", "model-1", "model-2"),
    ),
    "runs": (
        runs_page(
            ComparedRuns(
                runs=tuple(
                    ComparedRun(directory=f"{name}/with-a-long-directory-name", report=whole())
                    for name in "abc"
                ),
                notes=("something",),
            )
        ),
        ("summary", "runs", "verdicts"),
    ),
}


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium: the machine's own, or the one playwright has installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    own = next((path for name in NAMES if (path := shutil.which(name))), None)
    with api.sync_playwright() as playwright:
        if own is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip("no Chromium on this machine (apt-get install chromium)")
        opened = playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_whole(name, width, scheme, browser, tmp_path):
    text, sections = PAGES[name]
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    said, fetched = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    for section in sections:
        assert page.locator(f"#{section}").count() == 1, section
        assert page.locator(f"#{section}").is_visible(), section
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for svg in page.locator("svg").all():
        box = svg.bounding_box()
        assert box["width"] > 50
        assert box["height"] > 25
    ink, paper = (
        sum(map(int, page.evaluate(script)[4:-1].split(",")))
        for script in (
            "getComputedStyle(document.querySelector('h1')).color",
            "getComputedStyle(document.documentElement).backgroundColor",
        )
    )
    assert (ink > paper) is (scheme == "dark")
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []
    context.close()


def test_what_a_figure_draws_follows_the_scheme(browser, tmp_path):
    (tmp_path / "page.html").write_text(PAGES["report"][0], encoding="utf-8")
    colours = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        colours.add(
            page.evaluate("getComputedStyle(document.querySelector('#depth svg text')).fill")
        )
        context.close()
    assert len(colours) == 2
