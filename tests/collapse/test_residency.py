"""Blocks that compute something else when they are run alone are found out, part by part."""

from contextlib import contextmanager

import pytest
import torch

from compressor.collapse.chain import find_shapes
from compressor.collapse.residency import IN_MEMORY, check_chain
from compressor.errors import ModelError
from tests.collapse.test_chain import INPUTS, Net, in_order


class Told:
    """A residency that notes what it is asked for."""

    def __init__(self):
        self.events = []

    @contextmanager
    def _held(self, name):
        self.events.append(f"+{name}")
        yield
        self.events.append(f"-{name}")

    def before(self):
        return self._held("before")

    def block(self, index):
        return self._held(index)

    def after(self):
        return self._held("after")


def counting(net, x):
    """Shift every call by the number of calls before it, whichever block it is."""
    for block in net.blocks:
        net.calls = getattr(net, "calls", 0) + 1
        x = block(x, shift=float(net.calls))
    return x


def test_blocks_are_there_one_at_a_time_in_their_order():
    net, told = Net(in_order), Told()
    chain = find_shapes(net, lambda: net(INPUTS))
    check_chain(chain, lambda: net(INPUTS), told)
    pairs = ["before", 0, 1, 2, 0, 1, 2]
    assert told.events == [f"{sign}{name}" for name in pairs for sign in "+-"]


def test_a_block_that_depends_on_what_ran_before_is_refused():
    net = Net(counting)
    chain = find_shapes(net, lambda: net(INPUTS))
    with pytest.raises(ModelError, match="block 0 alone gives another output"):
        check_chain(chain, lambda: net(INPUTS), IN_MEMORY)
    with torch.no_grad():
        net(INPUTS)  # no hook is left behind
