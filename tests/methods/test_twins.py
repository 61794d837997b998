"""Two models in one forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.methods.twins import Twin, doubled


def test_each_half_goes_through_its_own_module_after_both_have_met():
    dense, low = nn.Linear(3, 2), nn.Linear(3, 2)
    x = torch.randn(8, 3)
    met = []

    def meet(first, second, expected):
        met.append((first, second, expected))
        nn.init.zeros_(low.weight)

    out = Twin(dense, low, meet)(x)
    assert torch.equal(out, torch.cat([dense(x[:4]), low.bias.expand(4, 2)]))
    ((first, second, expected),) = met
    assert torch.equal(first, x[:4])
    assert torch.equal(second, x[4:])
    assert torch.equal(expected, dense(x[:4]))


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_batches_are_doubled_in_whatever_form_they_come(form):
    x = torch.arange(6).view(3, 2)
    given = {"tensor": x, "tuple": (x,), "dict": {"x": x}}[form]
    found = doubled(given)
    (part,) = [found] if form == "tensor" else found.values() if form == "dict" else found
    assert torch.equal(part, torch.cat([x, x]))


def test_a_twin_answers_for_the_dense_layer():
    dense = nn.Linear(3, 2)
    twin = Twin(dense, nn.Linear(3, 2), lambda *given: None)
    assert twin.weight is dense.weight
    assert twin.in_features == 3
    assert not hasattr(twin, "nothing")
