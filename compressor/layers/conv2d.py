"""nn.Conv2d, 1×1 and k×k, in channel form."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.layers.convolution import MAX_POSITIONS, ConvolutionKind, padded, spaced
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.lowrank import LowRankConv2d, LowRankSpatialConv2d


class Conv2dKind(ConvolutionKind):
    """Convolutions; rows are unfolded patches [c·kh·kw], W is the weight flattened to [m, n]."""

    name = "conv2d"
    lowrank_type: ClassVar[type[LowRankConv2d] | type[LowRankSpatialConv2d]] = LowRankConv2d

    def rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor | None:
        """Return the patches [B, P, n] under a grid of at most `MAX_POSITIONS` output positions."""
        assert isinstance(module, nn.Conv2d)
        if inputs.ndim != 4 or inputs.shape[0] != samples:
            return None
        filled = padded(module, inputs)
        (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
        height = (filled.shape[2] - dh * (kh - 1) - 1) // sh + 1
        width = (filled.shape[3] - dw * (kw - 1) - 1) // sw + 1
        y, x = _grid(height, width, inputs.device)
        # Gather instead of unfolding everything: only the chosen patches are ever copied.
        rows = (y * sh)[:, None] + torch.arange(kh, device=inputs.device) * dh  # (P, kh)
        columns = (x * sw)[:, None] + torch.arange(kw, device=inputs.device) * dw  # (P, kw)
        patches = filled[:, :, rows[:, :, None], columns[:, None, :]]  # (B, c, P, kh, kw)
        # The width is said: of no patches at all it could not be told.
        return patches.transpose(1, 2).reshape(samples, len(y), inputs.shape[1] * kh * kw)

    def all_rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor:
        """Return the patches [B, H'·W', n] under every output position."""
        assert isinstance(module, nn.Conv2d)
        del samples
        if (
            module.kernel_size == (1, 1)
            and module.stride == (1, 1)
            and not any(module._reversed_padding_repeated_twice)
        ):
            return inputs.flatten(2).transpose(1, 2)
        patches = functional.unfold(
            padded(module, inputs), module.kernel_size, module.dilation, 0, module.stride
        )
        return patches.transpose(1, 2)

    def output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [B, m, H', W'] at the grid of `rows`, as [B, P, m]."""
        del module, samples
        y, x = _grid(outputs.shape[2], outputs.shape[3], outputs.device)
        return outputs[:, :, y, x].transpose(1, 2)

    def all_output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [B, m, H', W'] as [B, H'·W', m]."""
        del module, samples
        return outputs.flatten(2).transpose(1, 2)


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows and columns [P] of an evenly spaced grid over H'×W' positions."""
    side = int(MAX_POSITIONS**0.5)
    y = spaced(height, max(side, MAX_POSITIONS // max(width, 1)))
    x = spaced(width, max(side, MAX_POSITIONS // max(height, 1)))
    grid = torch.cartesian_prod(y, x).to(device)
    return grid[:, 0], grid[:, 1]


LAYER_KINDS.register("conv2d")(Conv2dKind())
