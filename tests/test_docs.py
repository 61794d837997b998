"""Every code block of the documentation is run, or checked where it names what a reader has."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from typer.main import get_command

from compressor.cli import main
from compressor.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = {"tutorial.md", "CONTRIBUTING.md"}
"""Pages whose unmarked blocks are run from top to bottom; the others' are read only."""

BLOCK = re.compile(
    r"(?:^<!-- checked, not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PROGRAM = get_command(app)


class Block(NamedTuple):
    """A code block; ``why`` says why it cannot be run, where it is marked so."""

    kind: str
    text: str
    why: str | None


def blocks(page):
    return [
        Block(found["kind"], found["text"], found["why"])
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


def commands(block):
    """Return the words of each line that calls compressor, without prompt and continuation."""
    lines = block.text.replace("\\\n", " ").splitlines()
    lines = [line.removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("compressor ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_reads_as_what_it_says_it_is(page):
    for block in blocks(page):
        if block.kind in ("sh", "console", "bash"):
            for _, name, *words in commands(block):
                if name in PROGRAM.commands:
                    PROGRAM.commands[name].make_context(name, list(words))
                else:
                    assert name.startswith("-"), f"{page.name}: no command {name}"
        elif block.kind == "python":
            compile(block.text, str(page), "exec")
        elif block.kind == "json":
            json.loads(block.text)
        elif block.kind == "yaml":
            yaml.safe_load(block.text)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RUN))
def test_pages_that_can_be_followed_are(name, tmp_path, monkeypatch, capsys):
    (page,) = [page for page in PAGES if page.name == name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compressor").mkdir()  # stands for the clone that the tutorial begins in
    (tmp_path / "compressor" / "demo").symlink_to(ROOT / "compressor" / "demo")
    python = ""
    for block in [*blocks(page), Block("end", "", None)]:
        if block.why is not None:
            continue
        if block.kind == "python":
            python += block.text
            continue
        if python:
            run_python(python, tmp_path)
            python = ""
        if block.kind == "sh":
            for words in commands(block):
                assert main(words[1:]) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"
    if name == "tutorial.md":
        made = {"layers.csv", "layers.svg", "small", "plain.safetensors"}
        assert made <= {path.name for path in tmp_path.iterdir()}


def run_python(code, directory):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_the_rules_see_a_block_that_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\ncompressor measure net --dta d\n```\n\n```python\ndef (\n```\n")
    wrong, broken = blocks(page)
    (words,) = commands(wrong)
    with pytest.raises(Exception, match="--dta"):
        PROGRAM.commands[words[1]].make_context(words[1], words[2:])
    with pytest.raises(SyntaxError):
        compile(broken.text, "page", "exec")


def test_the_paths_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:compressor|tests|benchmarks)/[\w./]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path
