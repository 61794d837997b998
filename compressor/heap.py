"""Memory that was freed and that the process still holds."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_freed() -> None:
    """Return freed memory to the system, that of reference cycles too."""
    gc.collect()
    trim()


def trim() -> None:
    """Return what the heap holds freed to the system, where the C library can: glibc.

    It keeps what lies between small objects that live on, and the more of these there are, the less
    of it fits what is asked for next.
    """
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)
