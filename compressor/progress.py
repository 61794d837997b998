"""How long work tells a person where it stands, without knowing about terminals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Receives the steps of long work. The command line draws them; the default is silent."""

    def track(self, items: Iterable[T], *, description: str, total: int | None) -> Iterator[T]:
        """Yield every item, showing how many of ``total`` are done."""
        ...

    def note(self, message: str) -> None:
        """Tell the person something once."""
        ...


class Silent:
    """A `Progress` that shows nothing."""

    def track(self, items: Iterable[T], *, description: str, total: int | None) -> Iterator[T]:
        """Yield every item."""
        del description, total
        yield from items

    def note(self, message: str) -> None:
        """Drop the message."""
        del message


class Once:
    """A `Progress` that passes each message on once, however often the same is noted.

    Args:
        progress: What is passed on to.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._noted: set[str] = set()

    def track(self, items: Iterable[T], *, description: str, total: int | None) -> Iterator[T]:
        """Yield every item as ``progress`` does."""
        return self._progress.track(items, description=description, total=total)

    def note(self, message: str) -> None:
        """Pass the message on, unless it was noted before."""
        if message not in self._noted:
            self._noted.add(message)
            self._progress.note(message)


SILENT = Silent()
