"""Blocks that are found and run alone, and lists of modules that are no chain of blocks."""

import pytest
import torch
from torch import nn

from compressor.collapse.chain import find_chain
from compressor.errors import ModelError


class Net(nn.Module):
    """Blocks with an extra argument that the model makes, in the order that ``run`` says."""

    def __init__(self, run):
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.scale = nn.Parameter(torch.ones(8))
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.run(self, x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, shift=0.0):
        return torch.tanh(self.linear(x)) + shift


def in_order(net, x):
    shift = x.mean()
    for block in net.blocks:
        x = block(x, shift=shift)
    return x


def twice(net, x):
    return in_order(net, in_order(net, x))


def past_each_other(net, x):
    return sum(block(x) for block in net.blocks)


def with_a_trained_extra(net, x):
    for block in net.blocks:
        x = block(x, net.scale)
    return x


def one_short(net, x):
    return net.blocks[1](net.blocks[0](x))


INPUTS = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def test_each_block_runs_alone_with_what_the_model_gives_it():
    net = Net(in_order)
    chain = find_chain(net, lambda: net(INPUTS))
    assert chain.names == ("blocks.0", "blocks.1", "blocks.2")
    with torch.no_grad():
        hidden = chain.enter(lambda: net(INPUTS))
        assert hidden is INPUTS
        for index in range(3):
            hidden = chain.run(lambda: net(INPUTS), index, hidden)
        with chain.left(hidden):
            assert torch.equal(net(INPUTS), net.out(hidden))
        assert torch.equal(net(INPUTS), net.out(hidden))  # nothing is left behind
    assert chain.position("blocks.1.linear") == 1
    assert chain.position("blocks.10") is None


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (twice, "once each"),
        (one_short, "once each"),
        (past_each_other, "not the output of the one before"),
        (with_a_trained_extra, "more than the hidden state"),
    ],
)
def test_what_is_no_chain_is_refused(run, reason):
    net = Net(run)
    with pytest.raises(ModelError, match=reason):
        find_chain(net, lambda: net(INPUTS))
    assert all("forward" not in vars(block) for block in net.blocks)


def test_a_model_without_blocks_is_refused():
    net = nn.Linear(8, 8)
    with pytest.raises(ModelError, match="no list of blocks"):
        find_chain(net, lambda: net(INPUTS))


def test_frozen_weights_stay_frozen():
    net = Net(with_a_trained_extra).requires_grad_(False)
    with pytest.raises(ModelError, match="more than the hidden state"):
        find_chain(net, lambda: net(INPUTS))
    assert not any(parameter.requires_grad for parameter in net.parameters())
