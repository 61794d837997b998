import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from compressor.cli.app import app
from compressor.schema import REPORT_VERSION, LayerFigures, ModelFigures, Report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAM = get_command(app)


def commands(program):
    """Return the README's shell lines that call ``program``."""
    lines = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    lines += [line[2:] for line in README.splitlines() if line.startswith(f"$ {program} ")]
    return [line for line in lines if line.startswith(f"{program} ")]


@pytest.mark.slow
def test_the_python_example_runs_as_it_stands(tmp_path):
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    dense, small = map(float, done.stdout.split())
    assert dense > 0.85
    assert small > dense - 0.03
    assert (tmp_path / "small" / "model.safetensors").is_file()


@pytest.mark.parametrize("line", commands("compressor"))
def test_every_command_parses(line):
    words = shlex.split(line, comments=True)[1:]
    PROGRAM.commands[words[0]].make_context(words[0], words[1:])


def test_every_subcommand_is_shown():
    assert {shlex.split(line)[1] for line in commands("compressor")} >= set(PROGRAM.commands) - {
        "demo"
    }


@pytest.mark.parametrize("line", commands("make"))
def test_every_make_target_exists(line):
    target = shlex.split(line, comments=True)[1]
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_the_report_table_names_every_key():
    section = README.split("## report.json")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    keys = {*Report.model_fields, *ModelFigures.model_fields, *LayerFigures.model_fields}
    assert keys <= named
    assert f"of this schema, {REPORT_VERSION} |" in section


def test_continuous_integration_runs_the_readmes_commands():
    run = (ROOT / ".ci" / "run").read_text().splitlines()
    steps = [" ".join(line.split()[:2]) for line in run if line.startswith("make ")]
    assert steps == ["make lint", "make types", "make test", "make test-slow", "make fuzz"]
    assert all(f"`{step}`" in README for step in steps)


def test_links_to_files_of_the_repository_hold():
    for path in re.findall(r"`((?:examples|\.ci)/[\w./]+)`", README):
        assert (ROOT / path).exists(), path
