"""Which terms hold all but a share of a sum."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.collapse.weighty import weighty


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    st.sampled_from([0.01, 0.1, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_the_fewest_that_hold_all_but_a_share(values, share):
    weights = torch.tensor(values, dtype=torch.float64)
    index = weighty(weights, share)
    index = torch.arange(len(weights)) if index is None else index
    total = float(weights.sum())
    assert index.tolist() == sorted(set(index.tolist()))
    held = float(weights[index].sum())
    assert held >= (1 - share) * total * (1 - 1e-12)
    if len(index):
        assert held - float(weights[index].min()) <= (1 - share) * total * (1 + 1e-12)
        left = weights[[i for i in range(len(weights)) if i not in set(index.tolist())]]
        assert not len(left) or float(left.max()) <= float(weights[index].min())


def test_zeros_are_left_out_and_of_equals_the_first_are_taken():
    assert weighty(torch.tensor([0.0, 2.0, 0.0, 1.0]), 0.0).tolist() == [1, 3]
    assert weighty(torch.tensor([1.0, 1.0, 1.0, 1.0]), 0.5).tolist() == [0, 1]
    assert weighty(torch.tensor([1.0, 1.0]), 0.1) is None
    assert weighty(torch.zeros(3), 0.1).tolist() == []
