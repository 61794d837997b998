"""Bars on a terminal: what the progress of one run and that of a batch are drawn with."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)


class TerminalBars:
    """Draws bars while it is entered, on a terminal only; a context manager.

    Args:
        console: Where to draw; stderr if None.
        columns: What stands behind the time that has passed.
    """

    def __init__(self, console: Console | None = None, *columns: ProgressColumn) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            # What a command prints is redirected by `run`, and must not pass through the bars.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
