"""How a process can end early: by signals, which let it clean up, and for want of memory."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

OUT_OF_MEMORY = (
    "out of memory. Nothing was written. Take fewer samples at a time (--batch-size), a shorter "
    "--max-length, or a machine with more memory"
)


class EndedBySignal(BaseException):
    """SIGTERM or SIGHUP arrived; no ``except Exception`` stops it, and ``finally`` blocks run.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as Ctrl-C does, so that nothing half-written is left.

    Handlers that are already set, by a program that this one is part of, are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        number
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None))
        if number is not None and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    raise EndedBySignal(number)
