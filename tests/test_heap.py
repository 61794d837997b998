"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import pytest

from compressor.heap import give_back_freed, holding_freed, trim

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
    assert before - resident() > 30_000_000  # how much of it depends on where the pieces lie
    assert len(small) == 2000


def test_of_cycles_too():
    kept = bytearray(60_000_000)
    kept_by = [kept]
    kept_by.append(kept_by)
    before = resident()
    del kept, kept_by
    give_back_freed()
    assert before - resident() > 50_000_000


def freed_at_the_top():
    """Return the bytes that stay resident when 400 MB at the top of the heap are freed."""
    give_back_freed()
    before = resident()
    pieces = [bytearray(10_000_000) for _ in range(40)]
    assert resident() - before > 350_000_000
    pieces.clear()
    return resident() - before


def fail_with_memory_freed():
    with holding_freed():
        assert freed_at_the_top() > 350_000_000
        raise ValueError("no")


def test_freed_memory_is_held_inside_the_block_alone():
    with holding_freed():
        assert freed_at_the_top() > 350_000_000
        held = resident()
    assert held - resident() > 300_000_000
    assert freed_at_the_top() < 200_000_000


def test_it_is_given_back_after_an_error_too():
    before = resident()
    with pytest.raises(ValueError, match="no"):
        fail_with_memory_freed()
    assert resident() - before < 200_000_000
