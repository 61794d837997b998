"""The `compressor` program: its subcommands, and how errors become messages and exit codes."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from compressor.cli.batch import batch
from compressor.cli.compare import compare
from compressor.cli.compress import compress
from compressor.cli.demo import demo
from compressor.cli.endings import OUT_OF_MEMORY, EndedBySignal, ended_by_signals
from compressor.cli.evaluate import evaluate
from compressor.cli.export import export
from compressor.cli.flatten import add_command, examples_text
from compressor.cli.inspect import inspect
from compressor.cli.measure import measure
from compressor.cli.plan import plan
from compressor.cli.progress import printable
from compressor.cli.report import report
from compressor.cli.sweep import sweep
from compressor.cli.verify import verify
from compressor.errors import CompressorError, UsageError
from compressor.paths import advice, worded
from compressor.room import is_out_of_memory

INTERRUPTED = 130
ISSUES = "Please report it with the command and the output of COMPRESSOR_DEBUG=1."

app = typer.Typer(
    name="compressor",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples_text(("compressor demo", "compressor compress --help")),
)
for command in (
    compress,
    inspect,
    measure,
    compare,
    plan,
    evaluate,
    sweep,
    batch,
    report,
    export,
    verify,
    demo,
):
    add_command(app, command)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            number = version("compressor")
        except PackageNotFoundError:
            number = "(not installed: run from its source)"
        typer.echo(f"compressor {number}")
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Make pretrained models smaller by low-rank factors, guided by neural collapse."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        arguments: Words after the program's name; those of this process if None.

    Returns:
        0 when all went well, 1 after a failure, 2 when the call itself is wrong, 3 when a budget
        cannot be met, 130 after an interrupt, 143 after SIGTERM.
    """
    debug = os.environ.get("COMPRESSOR_DEBUG") == "1"
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with ended_by_signals():
            _refuse_other_encodings(words)
            code = app(args=words, prog_name="compressor", standalone_mode=False)
    except (Exception, KeyboardInterrupt, EndedBySignal) as error:
        return _failed(error, debug=debug)
    if code == INTERRUPTED:
        return _fail("interrupted", code=INTERRUPTED, debug=False)
    return code if isinstance(code, int) else 0


def _failed(error: BaseException, *, debug: bool) -> int:
    """Print what ended the program, and return its exit code."""
    if _is_call_error(error):
        return _fail_call(error)
    code = 1
    if isinstance(error, CompressorError):
        message, code = str(error), error.exit_code
    elif isinstance(error, EndedBySignal):
        message, code, debug = f"ended by {error.name}", 128 + error.number, False
    elif isinstance(error, (KeyboardInterrupt, typer.Abort)):
        message, code, debug = "interrupted", INTERRUPTED, False
    elif is_out_of_memory(error):
        message = f"{OUT_OF_MEMORY} ({_one_line(error)})"
    elif isinstance(error, OSError):
        message = f"{worded(error)}. {advice(error)}"
        code = UsageError.exit_code if error.errno == errno.ENAMETOOLONG else 1
    else:
        message = f"unexpected {type(error).__name__}: {_one_line(error)} {ISSUES}"
    return _fail(message, code=code, debug=debug)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"


def _refuse_other_encodings(words: Sequence[str]) -> None:
    """Refuse words that were no UTF-8: Python holds their bytes as halves of surrogate pairs.

    Raises:
        UsageError: Naming the word.
    """
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError(
                f"{word} is no text in UTF-8, as reports are. Rename the file, or make a link to "
                "it whose name is."
            ) from None


def _is_call_error(error: BaseException) -> bool:
    """Return whether the words of the command line could not be read.

    typer's base of these errors has moved between its releases (click's own, then a private
    copy), so they are told by what they have in common.
    """
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _fail_call(error: Any) -> int:
    """Print what was wrong with the call, with the nearest option where one was mistyped."""
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip()
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        return int(error.exit_code)
    wrong = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and context is not None:
        known = [name for parameter in context.command.params for name in parameter.opts]
        nearest = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
        hint = f"Did you mean {nearest[0]}?" if nearest else f"See: {context.command_path} --help"
        message = f"{context.command_path} has no option {wrong}. {hint}"
    elif context is not None:
        end = "" if message.endswith(("?", ".")) else "."
        message = f"{message}{end} See: {context.command_path} --help"
    return _fail(message, code=int(error.exit_code), debug=False)


def _fail(message: str, *, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {printable(message)}", file=sys.stderr)  # noqa: T201
    return code
