"""Running several computations to the same points, each waiting there for the others.

A layer that is solved for on what all batches give it must not let one of them pass before the last
has come. So every batch runs in a thread of its own, but only one at a time and always in the same
order: sums come out the same, bit for bit, whenever they are made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

Action = Callable[[], None]


class Lockstep:
    """Computations that take turns.

    Args:
        count: How many there are.
    """

    def __init__(self, count: int) -> None:
        self._condition = threading.Condition()
        self._running = list(range(count))  # those that have not ended, in order
        self._turn = 0  # place in that list
        self._own = threading.local()
        self._error: BaseException | None = None

    @property
    def index(self) -> int:
        """Number of the computation that asks."""
        number: int = self._own.index
        return number

    def run(self, work: Callable[[], None]) -> None:
        """Call ``work`` once for each computation, and return when all have ended.

        Raises:
            BaseException: What the first of them that failed raised; the others end where they are.
        """
        threads = [
            threading.Thread(target=self._whole, args=(index, work), daemon=True)
            for index in self._running
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # an interrupt reaches the main thread alone
            self._fail(error)
            for thread in threads:
                thread.join()
            raise
        if self._error is not None:
            raise self._error

    def meet(self, action: Action) -> None:
        """Wait until all others have come to their meeting; the last to come calls its action."""
        with self._condition:
            if self._turn == len(self._running) - 1:
                action()
            self._turn = (self._turn + 1) % len(self._running)
            self._condition.notify_all()
            self._wait()

    def _whole(self, index: int, work: Callable[[], None]) -> None:
        self._own.index = index
        try:
            with self._condition:
                self._wait()
            work()
        except _Ended:
            return
        except BaseException as error:
            self._fail(error)
            return
        with self._condition:
            del self._running[self._turn]
            self._turn = self._turn % len(self._running) if self._running else 0
            self._condition.notify_all()

    def _wait(self) -> None:
        """Wait for this computation's turn; the lock is held."""
        self._condition.wait_for(
            lambda: self._error is not None or self._running[self._turn] == self.index
        )
        if self._error is not None:
            raise _Ended

    def _fail(self, error: BaseException) -> None:
        with self._condition:
            self._error = self._error or error
            self._condition.notify_all()


class _Ended(BaseException):
    """Ends a computation because another one failed."""


def groups(sizes: Sequence[int], most: int) -> list[slice]:
    """Return consecutive groups whose sizes add up to at most ``most``, each of one at least."""
    found, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            found.append(slice(start, index))
            start, total = index, 0
        total += size
    return [*found, slice(start, len(sizes))] if sizes else found
