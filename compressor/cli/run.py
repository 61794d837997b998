"""What every command does around its work: keep stdout for results, show progress, print."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TypeVar

from pydantic import BaseModel
from rich.console import Console, RenderableType

from compressor.cli.options import RunSettings
from compressor.cli.progress import TerminalProgress, printable
from compressor.errors import BudgetError
from compressor.progress import SILENT, Progress
from compressor.waiting import wait_shortly

Result = TypeVar("Result", bound=BaseModel)

_LIBRARIES = (
    "timm",
    "transformers",
    "datasets",
    "huggingface_hub",
    "torch",
    "torch.utils._pytree",  # torchao makes it warn as soon as transformers finds it installed
    "PIL",
    "accelerate",
)
_LIBRARY_SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def run(
    work: Callable[[Progress], Result],
    settings: RunSettings,
    *,
    view: Callable[[Result], RenderableType],
    shared: bool = False,
) -> Result:
    """Do ``work``, print what it returns (a view for people, or JSON), and return it.

    Args:
        work: Called with the progress to report to.
        settings: How the command talks.
        view: Turns the result into what a terminal shows.
        shared: Whether several processes that torchrun started may do the work together.
    """
    wait_shortly(os.environ)  # before torch is imported, which `work` does
    with _libraries_quiet(), redirect_stdout(sys.stderr), _together(shared) as leads:
        if settings.quiet or not leads:
            result = work(SILENT)
        else:
            with TerminalProgress() as progress:
                result = work(progress)
    if not leads:
        return result
    if settings.as_json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        show(view(result))
    return result


@contextmanager
def _together(shared: bool) -> Iterator[bool]:
    """Join the processes that torchrun started; yield whether this one is to print."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield True  # torch is not imported for this
        return
    from compressor.distributed import started

    with started(shared=shared) as group:
        yield group.leads


def require_met(unmet: Sequence[str]) -> None:
    """End with the exit code of a budget that was not met, after the result was shown.

    Raises:
        BudgetError: If there is one; what was saved is the nearest that can be reached.
    """
    if unmet:
        raise BudgetError(f"{' '.join(unmet)} What was written is the nearest that can be reached.")


def show(renderable: RenderableType) -> None:
    """Print to stdout; where that is no terminal, without the spaces that pad a table's lines."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as captured:
        console.print(renderable)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def typed_command() -> str:
    """Return the command line of this process as a shell would take it, for the report."""
    return shlex.join(["compressor", *sys.argv[1:]])


@contextmanager
def _libraries_quiet() -> Iterator[None]:
    """Silence the chatter of libraries, keep this package's own warnings, one line each."""
    if os.environ.get("COMPRESSOR_DEBUG") == "1":
        yield
        return
    for name, value in _LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"compressor\.")
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"warning: {printable(str(message))}\n")
