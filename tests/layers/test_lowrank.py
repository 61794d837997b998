"""The low-rank modules compute two thin products, and refuse dense checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.layers.lowrank import LowRankConv2d, LowRankLinear, LowRankSpatialConv2d


def test_linear_is_two_products():
    layer = LowRankLinear(7, 5, 3, dtype=torch.float64)
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    expected = x @ layer.down.weight.T @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight.shape == (5, 3)
    assert (layer.in_features, layer.out_features, layer.rank) == (7, 5, 3)
    assert sum(p.numel() for p in layer.parameters()) == 3 * (7 + 5) + 5


def test_convolution_has_geometry_below_and_bias_above():
    dense = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=2, padding_mode="reflect")
    layer = LowRankConv2d(dense, 3, bias=True)
    assert layer.weight.shape == (6, 3, 1, 1)
    assert layer.down.weight.shape == (3, 4, 3, 2)
    assert layer.down.bias is None
    x = torch.randn(2, 4, 9, 9)
    assert layer(x).shape == dense(x).shape
    assert (layer.in_channels, layer.out_channels) == (4, 6)
    assert sum(p.numel() for p in layer.parameters()) == 3 * (6 + 24) + 6


def test_spatial_form_has_one_axis_in_each_factor():
    dense = nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2))
    layer = LowRankSpatialConv2d(dense, 5, bias=True)
    assert layer.weight.shape == (6, 5, 1, 2)
    assert layer.down.weight.shape == (5, 4, 3, 1)
    assert (layer.stride, layer.padding, layer.dilation) == ((1, 3), (0, 0), (1, 2))
    assert (layer.down.stride, layer.down.padding, layer.down.dilation) == ((2, 1), (1, 0), (1, 1))
    assert layer.down.bias is None
    x = torch.randn(2, 4, 9, 9)
    assert layer(x).shape == dense(x).shape
    assert (layer.in_channels, layer.out_channels) == (4, 6)
    assert sum(p.numel() for p in layer.parameters()) == 5 * (4 * 3 + 6 * 2) + 6


@pytest.mark.parametrize(
    ("dense", "lowrank"),
    [
        (nn.Linear(8, 6), LowRankLinear(8, 6, 2)),
        (nn.Conv2d(8, 6, 1), LowRankConv2d(nn.Conv2d(8, 6, 1), 2, bias=True)),
        (nn.Conv2d(8, 6, 3), LowRankSpatialConv2d(nn.Conv2d(8, 6, 3), 2, bias=True)),
        (nn.Conv2d(8, 6, 3), LowRankSpatialConv2d(nn.Conv2d(8, 6, 3), 8, bias=True)),
    ],
)
def test_weights_of_the_other_form_do_not_load(dense, lowrank):
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        dense.load_state_dict(lowrank.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        lowrank.load_state_dict(dense.state_dict(), strict=False)


def test_repr_tells_sizes():
    assert repr(LowRankLinear(8, 6, 2)).startswith("LowRankLinear(\n  8, 6, rank=2")
    assert "8, 6, rank=2" in repr(LowRankConv2d(nn.Conv2d(8, 6, 1), 2, bias=True))
