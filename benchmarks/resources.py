"""What a piece of work costs: seconds, and memory above what was resident before it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compressor.heap import give_back_freed

MIB = 2**20
_RESET_PEAK = "5"
"""Written to /proc/self/clear_refs, it sets the peak back to what is resident now (proc(5))."""


@dataclass
class Cost:
    """What one block cost.

    Args:
        seconds: Wall time.
        memory: Peak resident bytes above those at its start; None where the system does not tell.
        peak: Peak resident bytes, those at its start included; None likewise.
    """

    seconds: float = 0.0
    memory: int | None = None
    peak: int | None = None


@contextmanager
def metered() -> Iterator[Cost]:
    """Fill in what the block costs when it ends, also by an exception.

    Blocks are not nested: the inner one would set back the peak of the outer one.
    """
    cost = Cost()
    before = _restarted_peak()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        after = None if before is None else _status("VmHWM")
        if before is not None and after is not None:
            cost.memory, cost.peak = max(after - before, 0), after


def resident() -> int | None:
    """Return the resident bytes of this process, freed memory given back; None off Linux."""
    give_back_freed()
    return _status("VmRSS")


def _restarted_peak() -> int | None:
    """Set the peak back, and return the resident bytes it starts from; None off Linux."""
    give_back_freed()
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    """Return a field of /proc/self/status in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None
