"""Giving freed matrices back to the system."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of mallopt(3)."""

_LARGE = 1 << 18


def return_freed_memory() -> None:
    """Have allocations from 256 kB on returned to the system when they are freed.

    glibc raises that bound by itself, up to 32 MB, to the size of what is freed. Matrices of each
    new block then lie among the gaps of older ones, and the heap grows from block to block: over 15
    blocks of 54 MB by 180 MB. Other C libraries are left alone.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
