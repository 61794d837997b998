"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import pytest

from compressor.heap import give_back_freed


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="resident pages are read from /proc")
def test_what_lies_between_small_objects_is_given_back():
    pieces, small = [], []
    for _ in range(2000):  # too small to be mapped by themselves
        pieces.append(bytearray(60_000))
        small.append(bytearray(600))
    before = resident()
    pieces.clear()
    give_back_freed()
    assert before - resident() > 60_000_000
    assert len(small) == 2000
