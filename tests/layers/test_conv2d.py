"""Convolutions: which are refused, and the grid that statistics are taken from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.layers.conv2d import Conv2dKind
from compressor.layers.convolution import MAX_POSITIONS

KIND = Conv2dKind()


class PadsFirst(nn.Conv2d):
    def forward(self, input):
        return super().forward(nn.functional.pad(input, (1, 1, 1, 1)))


class Standardized(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


def test_subclasses_that_compute_otherwise_are_refused():
    assert KIND.refusal(nn.Conv2d(4, 4, 3)) is None
    assert KIND.refusal(PadsFirst(4, 4, 3)) == "PadsFirst computes its own forward"
    assert KIND.refusal(Standardized(4, 4, 3)) == "Standardized computes its own forward"


@pytest.mark.parametrize("size", [(1, 1), (5, 100), (100, 5), (64, 64), (3, 7), (9, 8)])
def test_grid_is_bounded_and_the_same_for_inputs_and_outputs(size):
    layer = nn.Conv2d(2, 5, 3, padding=1, bias=False).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    rows = KIND.rows(layer, x, 2)
    assert rows.shape[1] <= MAX_POSITIONS
    assert rows.shape[1] >= min(MAX_POSITIONS // 2, size[0] * size[1])
    torch.testing.assert_close(rows @ KIND.matrix(layer).T, KIND.output_rows(layer, layer(x), 2))


def test_small_maps_are_taken_whole():
    layer = nn.Conv2d(2, 5, 3, padding=1)
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(KIND.rows(layer, x, 2), KIND.all_rows(layer, x, 2))


def test_a_map_smaller_than_the_kernel_has_no_patches():
    conv = nn.Conv2d(4, 2, 5)  # a subclass that pads by itself is called on such maps
    assert Conv2dKind().rows(conv, torch.randn(3, 4, 2, 2), 3).shape == (3, 0, 100)


def test_unbatched_and_foreign_inputs_have_no_rows():
    layer = nn.Conv2d(2, 5, 3)
    assert KIND.rows(layer, torch.randn(2, 8, 8), 2) is None
    assert KIND.rows(layer, torch.randn(6, 2, 8, 8), 3) is None


def test_geometry_decides_what_is_shared():
    def key(**kwargs):
        return KIND.sharing(nn.Conv2d(4, 4, 3, **kwargs))

    assert key() == key(bias=False)
    others = [
        key(stride=2),
        key(padding=1),
        key(dilation=2),
        key(padding=1, padding_mode="reflect"),
    ]
    assert len({key(), *others}) == 5
