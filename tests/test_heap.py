"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import pytest

from compressor.heap import give_back_freed, trim

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="resident pages are read from /proc"
)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def pieces_between_small_ones():
    """Return 120 MB in pieces too little to be mapped by themselves, and what lies between them."""
    pieces, small = [], []
    for _ in range(2000):
        pieces.append(bytearray(60_000))
        small.append(bytearray(600))
    return pieces, small


@pytest.mark.parametrize("give_back", [give_back_freed, trim])
def test_what_lies_between_small_objects_is_given_back(give_back):
    pieces, small = pieces_between_small_ones()
    before = resident()
    pieces.clear()
    give_back()
    assert before - resident() > 60_000_000
    assert len(small) == 2000


def test_of_cycles_too():
    kept = bytearray(60_000_000)
    kept_by = [kept]
    kept_by.append(kept_by)
    before = resident()
    del kept, kept_by
    give_back_freed()
    assert before - resident() > 50_000_000
