"""What convolutions over one and over two axes share as layer kinds, in channel form."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.layers.kinds import computed_weight, product, write_dense
from compressor.layers.lowrank import LOW_RANK_TYPES, ChannelForm, LowRankSpatialConv2d

MAX_POSITIONS = 64
"""Output positions per sample that statistics are taken from; a coarser grid is used above it."""


class ConvolutionKind:
    """Convolutions; rows are unfolded patches [n], W is the weight flattened to [m, n]."""

    lookup = False
    lowrank_type: ClassVar[type[ChannelForm] | type[LowRankSpatialConv2d]]
    """What a factorized layer becomes; it names the dense type too."""

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is dense and of this type; `refusal` sorts out subclasses."""
        dense = isinstance(module, self.lowrank_type.dense_type)
        return dense and not isinstance(module, LOW_RANK_TYPES)

    def refusal(self, module: nn.Module) -> str | None:
        """Refuse depthwise, grouped and parametrized convolutions and foreign forwards."""
        layer = self._dense(module)
        if layer.groups == layer.in_channels and layer.groups > 1:
            return "depthwise: each filter sees one channel, there is no rank to lower"
        if layer.groups > 1:
            return (
                f"grouped convolution ({layer.groups} groups of {layer.weight.shape[1]} channels)"
            )
        if reason := computed_weight(layer):
            return reason
        plain = self.lowrank_type.dense_type
        if (type(layer).forward, type(layer)._conv_forward) != (plain.forward, plain._conv_forward):
            return f"{type(layer).__name__} computes its own forward"
        return None

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (out_channels, in_channels times the size of the kernel)."""
        layer = self._dense(module)
        return layer.out_channels, layer.weight[0].numel()

    def matrix(self, module: nn.Module) -> Tensor:
        """Return the weight [m, c, …] flattened to [m, n]."""
        weight: Tensor = self._dense(module).weight
        return weight.detach().flatten(1)

    def reached(self, module: nn.Module) -> Tensor | None:
        """Return None: it is called on every patch."""
        del module
        return None

    def sharing(self, module: nn.Module) -> Hashable:
        """Convolutions on one tensor see the same patches if their geometry agrees."""
        layer = self._dense(module)
        return (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)

    def build(self, module: nn.Module, rank: int, *, bias: bool) -> nn.Module:
        """Return an unfilled pair of convolutions."""
        return self.lowrank_type(self._dense(module), rank, bias=bias)

    def fill(self, lowrank: nn.Module, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        """Write up [m, r] into the convolution of size 1 and down [r, n] into the other."""
        layer = self._factorized(lowrank)
        with torch.no_grad():
            layer.weight.copy_(up.reshape(layer.weight.shape))
            layer.down.weight.copy_(down.reshape(layer.down.weight.shape))
            if bias is not None:
                layer.bias.copy_(bias)

    def factors(self, lowrank: nn.Module) -> tuple[Tensor, Tensor]:
        """Return (weight [m, r], down.weight flattened to [r, n])."""
        layer = self._factorized(lowrank)
        return layer.weight.detach().flatten(1), layer.down.weight.detach().flatten(1)

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return a dense convolution with the factors' product and the geometry of the first."""
        layer = self._factorized(lowrank)
        down = layer.down
        convolution = self.lowrank_type.dense_type(
            down.in_channels,
            layer.out_channels,
            down.kernel_size,
            stride=down.stride,
            padding=down.padding,
            dilation=down.dilation,
            padding_mode=down.padding_mode,
            bias=layer.bias is not None,
            device=down.weight.device,
            dtype=down.weight.dtype,
        )
        return write_dense(convolution, product(*self.factors(layer)), layer.bias)

    def _dense(self, module: nn.Module) -> Any:
        assert isinstance(module, self.lowrank_type.dense_type)
        return module

    def _factorized(self, module: nn.Module) -> Any:
        assert isinstance(module, self.lowrank_type)
        return module


def padded(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Pad the input [B, c, …] as the convolution itself would."""
    # torch keeps the padding of both sides of the last dimensions here, "same" included.
    amounts = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, amounts, mode=mode)


def spaced(length: int, count: int) -> Tensor:
    """Return at most ``count`` indices, evenly spaced over ``range(length)``; none below 1."""
    count = max(min(length, count), 0)
    return ((torch.arange(count) * 2 + 1) * length) // (2 * count)
