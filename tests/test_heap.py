"""Freed memory goes back to the system."""

import os
import subprocess
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


HELD = """
from pathlib import Path
from compressor.heap import give_back_freed, holding_freed

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def freed_at_the_top():
    give_back_freed()
    before = resident()
    pieces = [bytearray(10_000_000) for _ in range(40)]
    assert resident() - before > 350_000_000
    pieces.clear()
    return resident() - before

def fail_with_memory_freed():
    with holding_freed():
        freed_at_the_top()
        raise ValueError

start = resident()
with holding_freed():
    print(freed_at_the_top())
print(resident() - start)
try:
    fail_with_memory_freed()
except ValueError:
    print(resident() - start)
"""


@pytest.mark.parametrize("asked", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_freed_memory_is_held_inside_the_block_alone_unless_the_user_says_how(asked):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | asked
    found = subprocess.run(
        [sys.executable, "-c", HELD], env=environment, capture_output=True, text=True, check=True
    )
    inside, after, after_error = map(int, found.stdout.split())
    assert (inside > 350_000_000) == (not asked)
    assert max(after, after_error) < 200_000_000
