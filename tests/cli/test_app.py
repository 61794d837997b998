import subprocess
import sys

import pytest

from compressor.cli import main
from compressor.cli.options import METHOD_NAMES
from compressor.errors import BudgetError, ModelError
from compressor.methods.method import METHODS

NO_BUDGET = ["compress", "net", "--data", "d", "--out", "o"]


def failing(monkeypatch, error):
    """Let the pipeline raise ``error`` when `inspect` calls it."""

    def raise_it(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("compressor.pipeline.inspect_model", raise_it)
    return main(["inspect", "net"])


def test_version_goes_to_stdout(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("compressor ")


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["compres"], "'compress', 'compare'"),
        (["evalute", "net"], "'evaluate'"),
        (["compress", "net", "--dta", "d"], "--data"),
        (["inspect", "net", "--exlude", "a"], "--exclude"),
        (["measure", "net", "--data", "d", "--max-lenght", "3"], "--max-length"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(words, nearest, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert f"Did you mean {nearest}?" in captured.err
    assert captured.err.startswith("error: ")
    assert captured.out == ""


def test_an_option_of_another_command_is_not_answered_with_a_guess(capsys):
    assert main(["inspect", "net", "--data", "d"]) == 2
    assert "inspect has no option --data. See: compressor inspect --help" in capsys.readouterr().err


def test_the_help_names_every_method():
    assert sorted(METHOD_NAMES.split(", ")) == sorted(METHODS.names())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (NO_BUDGET, "--budget"),
        ([*NO_BUDGET, "--budget", "layers=50%", "--plan", "p.json"], "leave out"),
        (["compress", "net", "--budget", "layers=50%", "--out", "o"], "--data"),
        (["plan", "net", "--data", "d"], "--budget"),
        (["measure", "net", "--data", "d", "--limit", "0"], "--limit"),
        (["measure", "net", "--data", "d", "--calibration", "many"], "--calibration"),
        (["inspect", "net", "--device", "gpu"], "--device"),
        (["inspect", "net", "--input-size", "big"], "channels,height,width"),
        (["inspect"], "MODEL"),
    ],
)
def test_a_wrong_call_is_one_message_and_exit_code_2(words, message, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModelError("net: no such file"), 1, "error: net: no such file\n"),
        (BudgetError("layers=1%: the least is 4 %"), 3, "error: layers=1%: the least is 4 %\n"),
        (
            OSError(28, "No space left on device", "o/x"),
            1,
            "error: no space left on device: o/x. Make room, or name a path elsewhere.\n",
        ),
        (
            OSError(36, "File name too long", "o/x"),
            2,
            "error: file name too long: o/x. Check the path.\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_become_one_line_and_their_exit_code(error, code, message, monkeypatch, capsys):
    assert failing(monkeypatch, error) == code
    captured = capsys.readouterr()
    assert captured.err == message
    assert captured.out == ""


def test_an_unexpected_error_asks_for_a_report(monkeypatch, capsys):
    monkeypatch.delenv("COMPRESSOR_DEBUG", raising=False)
    assert failing(monkeypatch, ZeroDivisionError("by\nzero")) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unexpected ZeroDivisionError: by zero")
    assert "COMPRESSOR_DEBUG=1" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv("COMPRESSOR_DEBUG", "1")
    assert failing(monkeypatch, ZeroDivisionError("by zero")) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "error: unexpected ZeroDivisionError" in err


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "compressor demo" in capsys.readouterr().out


def test_python_dash_m_runs_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "compressor", "inspct"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Did you mean 'inspect'?" in done.stderr


def test_shell_completion_offers_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "compressor"],
        capture_output=True,
        text=True,
        check=False,
        env={
            "_COMPRESSOR_COMPLETE": "complete_bash",
            "COMP_WORDS": "compressor in",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout.split() == ["inspect"]
