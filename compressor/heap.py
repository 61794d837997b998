"""Memory that was freed and that the process still holds."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_freed() -> None:
    """Return freed memory to the system, where the C library can: glibc.

    Its heap keeps what lies between small objects that live on, and the more of these there are,
    the less of it fits what is asked for next.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
