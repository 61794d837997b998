"""Grouped convolutions taken apart: each group is a convolution of its own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from compressor.layers.fused import FUSIONS, Unfused

NARROWEST_GROUP = 16
"""Channels that a group needs on both sides; narrower ones are left alone.

At rank r a group of c channels and a k×k kernel costs r·c·(k² + 1) instead of c²·k²: the groups of
4 to 8 channels of ResNeXt would keep almost all of their rank, and lose one fast kernel for many.
"""


class SeparateGroups(Unfused):
    """A grouped convolution as one convolution a group, children ``0`` … ``groups − 1``.

    Args:
        convolution: The module it replaces.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(convolution)
        groups = convolution.groups
        self.groups, self.biased = groups, convolution.bias is not None
        weights = convolution.weight.chunk(groups)
        biases = [None] * groups if convolution.bias is None else convolution.bias.chunk(groups)
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            part = nn.Conv2d(
                convolution.in_channels // groups,
                convolution.out_channels // groups,
                cast("tuple[int, int]", convolution.kernel_size),
                stride=cast("tuple[int, int]", convolution.stride),
                padding=convolution.padding,  # type: ignore[arg-type]
                dilation=cast("tuple[int, int]", convolution.dilation),
                padding_mode=convolution.padding_mode,
                bias=bias is not None,
                device="meta",
            )
            part.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
            if bias is not None:
                part.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
            self.add_module(str(number), part)

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, c, H, W] to [B, m, H', W']."""
        parts = zip(self.children(), input.chunk(self.groups, 1), strict=True)
        return torch.cat([convolution(part) for convolution, part in parts], 1)

    def fused(self) -> nn.Module:
        """Return the grouped convolution."""
        parts = cast("list[nn.Conv2d]", list(self.children()))
        bias = torch.cat([part.bias for part in parts]) if self.biased else None  # type: ignore[misc]
        return self._filled({"weight": torch.cat([p.weight for p in parts]), "bias": bias}, {})


class GroupedFusion:
    """nn.Conv2d with groups of at least `NARROWEST_GROUP` channels."""

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is a plain grouped convolution whose groups are wide."""
        return (
            type(module) is nn.Conv2d
            and module.groups > 1
            and isinstance(module._parameters.get("weight"), nn.Parameter)
            and min(module.in_channels, module.out_channels) >= NARROWEST_GROUP * module.groups
        )

    def unfuse(self, module: nn.Module) -> Unfused:
        """Return SeparateGroups."""
        assert isinstance(module, nn.Conv2d)
        return SeparateGroups(module)


FUSIONS.register("grouped-convolution")(GroupedFusion())
