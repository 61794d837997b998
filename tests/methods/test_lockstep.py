"""Computations that wait for each other."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.methods.lockstep import Lockstep, groups


def test_all_come_to_a_meeting_before_any_goes_on():
    lockstep, seen = Lockstep(3), []

    def work():
        for point in "ab":
            seen.append((point, lockstep.index))
            lockstep.meet(lambda point=point: seen.append((point, "all")))

    lockstep.run(work)
    assert seen == [
        *[("a", 0), ("a", 1), ("a", 2), ("a", "all")],
        *[("b", 0), ("b", 1), ("b", 2), ("b", "all")],
    ]


def test_one_that_ends_early_is_not_waited_for():
    lockstep, seen = Lockstep(3), []

    def work():
        for point in range(1 + lockstep.index):
            lockstep.meet(lambda point=point: seen.append(point))

    lockstep.run(work)
    assert seen == [0, 1, 2]


def test_a_failure_ends_all_and_is_told():
    lockstep, after = Lockstep(3), []

    def work():
        if lockstep.index == 1:
            raise ValueError("the second")
        lockstep.meet(lambda: None)
        after.append(lockstep.index)

    with pytest.raises(ValueError, match="the second"):
        lockstep.run(work)
    assert after == []


def test_a_failure_of_what_they_do_together_is_told():
    lockstep = Lockstep(2)

    def together():
        raise ValueError("together")

    with pytest.raises(ValueError, match="together"):
        lockstep.run(lambda: lockstep.meet(together))


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(0, 20))
def test_groups_are_consecutive_and_as_large_as_they_may_be(sizes, most):
    found = groups(sizes, most)
    assert [size for part in found for size in sizes[part]] == sizes
    for part in found:
        assert len(sizes[part]) == 1 or sum(sizes[part]) <= most
    for part, following in pairwise(found):
        assert sum(sizes[part]) + sizes[following.start] > most
