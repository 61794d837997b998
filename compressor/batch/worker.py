"""One job in a process of its own: settings come on stdin, events go to stdout, one JSON a line.

stdin stays open while the batch lives. When it ends, the batch is gone, and so is this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import IO, Any, TypeVar

from compressor.errors import CompressorError
from compressor.paths import advice, worded
from compressor.settings import CompressSettings
from compressor.stopwatch import Stopwatch

T = TypeVar("T")

STOPPED = 143
"""Exit code of a job that SIGTERM ended."""

PERIOD = 0.2
"""Seconds between two events about the progress of one stage, at least."""


class Teller:
    """Writes events as lines.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def tell(self, **event: Any) -> None:
        """Write one event."""
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class WorkerProgress:
    """A `compressor.progress.Progress` that becomes events."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller

    def track(self, items: Iterable[T], *, description: str, total: int | None) -> Iterator[T]:
        """Yield every item, telling how many are done."""
        last = 0.0
        done = 0
        for done, item in enumerate(items):
            if time.monotonic() - last >= PERIOD:
                last = time.monotonic()
                self._teller.tell(event="step", stage=description, done=done, total=total)
            yield item
        self._teller.tell(event="step", stage=description, done=total or done, total=total)

    def note(self, message: str) -> None:
        """Tell a note."""
        self._teller.tell(event="note", message=message)


class WorkerWatch(Stopwatch):
    """A stopwatch that tells of each stage as it begins, and lets one be stopped between them."""

    def __init__(self, teller: Teller) -> None:
        super().__init__()
        self._teller = teller
        self.current: str | None = None
        self.stopping = False

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell of the stage and time it."""
        self.current = name
        self._teller.tell(event="step", stage=name, done=None, total=None)
        with super().stage(name):
            yield
        self.current = None

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: end at once, or as soon as what is being written is written."""
        del number, frame
        self.stopping = True
        if self.current != "save":
            raise SystemExit(STOPPED)


def main() -> int:
    """Do the job that stdin tells of; returns the exit code that `compressor compress` would."""
    own_output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    teller = Teller(own_output)
    watch = WorkerWatch(teller)
    signal.signal(signal.SIGTERM, watch.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the batch decides
    settings = CompressSettings.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_the_batch, daemon=True).start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"compressor\.")
            from compressor.pipeline import compress_model

            compress_model(settings, progress=WorkerProgress(teller), watch=watch)
    except CompressorError as error:
        traceback.print_exc()
        teller.tell(
            event="failed", error=str(error), type=type(error).__name__, code=error.exit_code
        )
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        teller.tell(event="failed", error=told(error), type=type(error).__name__, code=1)
        return 1
    teller.tell(event="done")
    return 0


def told(error: Exception) -> str:
    """Return what is told of an error that nobody expected, on one line."""
    if isinstance(error, OSError):
        return f"{worded(error)}. {advice(error)}"
    message = " ".join(str(error).split()) or "no message"
    return f"unexpected {type(error).__name__}: {message}"


def _end_with_the_batch() -> None:
    """End this process when nobody holds the other end of stdin any more."""
    while sys.stdin.read(1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    exit_code = main()
    sys.stderr.flush()
    os._exit(exit_code)  # everything is on the disk; taking the libraries down takes seconds
