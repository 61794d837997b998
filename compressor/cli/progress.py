"""Progress on stderr: a bar with an estimate on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

T = TypeVar("T")


class TerminalProgress:
    """A `compressor.progress.Progress` drawn by rich; use it as a context manager.

    Args:
        console: Where to draw; stderr if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
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

    def track(self, items: Iterable[T], *, description: str, total: int | None) -> Iterator[T]:
        """Yield every item under a bar; afterwards leave one line with the time it took."""
        if total == 0:
            return
        started = time.perf_counter()
        task = self._bars.add_task(description, total=total)
        count = 0
        try:
            for item in items:
                yield item
                count += 1
                self._bars.advance(task)
        finally:
            self._bars.remove_task(task)
        seconds = time.perf_counter() - started
        self._console.print(
            f"{description}: {count} in {seconds:.1f} s", style="dim", markup=False, highlight=False
        )

    def note(self, message: str) -> None:
        """Print the message on a line of its own."""
        self._console.print(printable(message), markup=False, highlight=False)


def printable(message: str) -> str:
    """Return a message on one line, its control characters spelled out.

    Names in it may come from a stranger's file, and a terminal obeys what stands in them. What the
    terminal's encoding lacks (half of a surrogate pair, in a name that is no UTF-8) is spelled out.
    """
    plain = "".join(
        character
        if character.isprintable()
        else " "
        if character in "\n\t"
        else repr(character)[1:-1]
        for character in message
    )
    encoding = sys.stderr.encoding or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)
