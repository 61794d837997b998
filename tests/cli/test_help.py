import shlex
import subprocess
import sys

import pytest
from typer.main import get_command

from compressor.cli import main
from compressor.cli.app import app

PROGRAM = get_command(app)
COMMANDS = tuple(PROGRAM.commands)
EVERY_COMMAND_TAKES = ("--json", "--seed", "--device", "--batch-size", "--limit", "--quiet")
READS_ONLY = {"report", "verify"}
"""Commands that read what others wrote: they run a model on no data and draw nothing."""


def examples(command):
    """Return the example lines at the end of a command's help."""
    _, *lines = PROGRAM.commands[command].epilog.replace("\\[", "[").splitlines()
    return lines


def test_all_commands_are_there():
    assert set(COMMANDS) == {
        "compress",
        "inspect",
        "measure",
        "compare",
        "plan",
        "evaluate",
        "sweep",
        "batch",
        "report",
        "export",
        "verify",
        "demo",
    }


@pytest.mark.parametrize("command", sorted({*COMMANDS} - READS_ONLY))
def test_every_command_takes_the_shared_options(command):
    names = {name for parameter in PROGRAM.commands[command].params for name in parameter.opts}
    assert names.issuperset(EVERY_COMMAND_TAKES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    unexplained = [
        parameter.name
        for parameter in PROGRAM.commands[command].params
        if not getattr(parameter, "help", None)
    ]
    assert not unexplained


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_that_can_be_pasted(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert examples(command)
    assert printed[-len(examples(command)) :] == examples(command)


@pytest.mark.parametrize(
    "line", [line for command in COMMANDS for line in examples(command)], ids=str
)
def test_every_example_parses(line):
    program, command, *words = shlex.split(line)
    assert program == "compressor"
    PROGRAM.commands[command].make_context(command, words)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from compressor.cli import main; main(['compress', '--help']);"
        "heavy = {'torch', 'transformers', 'timm', 'datasets', 'sklearn', 'scipy', 'numpy'};"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout
