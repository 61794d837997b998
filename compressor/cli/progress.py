"""Progress on stderr: a bar with an estimate on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import TimeRemainingColumn

from compressor.cli.bars import TerminalBars

T = TypeVar("T")


class TerminalProgress(TerminalBars):
    """A `compressor.progress.Progress` drawn by rich; use it as a context manager.

    Args:
        console: Where to draw; stderr if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console, TimeRemainingColumn())

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
