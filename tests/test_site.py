"""The documentation builds as a site without a warning, and fetches nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.cli.app import app
from compressor.methods.method import METHODS

pytest.importorskip("mkdocs", reason="pip install 'compressor[docs]' builds the site")
pytest.importorskip("material", reason="pip install 'compressor[docs]' builds the site")
pytest.importorskip("mkdocstrings", reason="pip install 'compressor[docs]' builds the site")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the directory of the site, built as `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    return out


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?([^\">\s]+)", text)
        loaded += re.findall(r"<link[^>]+href=\"?([^\">\s]+)", text)
        assert not [place for place in loaded if re.match(r"(https?:)?//", place)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    for page in pages:
        assert f'href="{page.with_suffix(".html").as_posix()}"' in home, page


@pytest.mark.slow
def test_the_reference_is_made_from_the_code(site):
    commands = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"compressor {command.name}" in commands
    assert "--stationarity" in commands
    registered = (site / "reference" / "registries.html").read_text(encoding="utf-8")
    for name, _ in METHODS.items():
        assert f"<code>{name}</code>" in registered
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for verb in ("measure", "plan", "factorize", "evaluate", "save", "load", "export"):
        assert re.search(rf'id="compressor\.[\w.]*\.{verb}"', python), verb
