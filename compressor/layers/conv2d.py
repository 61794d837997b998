"""nn.Conv2d, 1×1 and k×k, in channel form."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.layers.kinds import LAYER_KINDS, computed_weight, product, write_dense
from compressor.layers.lowrank import LowRankConv2d

MAX_POSITIONS = 64
"""Output positions per image that statistics are taken from; a coarser grid is used above it."""

_PLAIN = (nn.Conv2d.forward, nn.Conv2d._conv_forward)


class Conv2dKind:
    """Convolutions; rows are unfolded patches [c·kh·kw], W is the weight flattened to [m, n]."""

    name = "conv2d"

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is an nn.Conv2d; `refusal` sorts out foreign subclasses."""
        return isinstance(module, nn.Conv2d) and not isinstance(module, LowRankConv2d)

    def refusal(self, module: nn.Module) -> str | None:
        """Refuse depthwise, grouped and parametrized convolutions and foreign forwards."""
        assert isinstance(module, nn.Conv2d)
        if module.groups == module.in_channels and module.groups > 1:
            return "depthwise: each filter sees one channel, there is no rank to lower"
        if module.groups > 1:
            return f"grouped convolution ({module.groups} groups)"
        if reason := computed_weight(module):
            return reason
        if (type(module).forward, type(module)._conv_forward) != _PLAIN:
            return f"{type(module).__name__} computes its own forward"
        return None

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (out_channels, in_channels·kh·kw)."""
        assert isinstance(module, nn.Conv2d)
        return module.out_channels, module.weight[0].numel()

    def matrix(self, module: nn.Module) -> Tensor:
        """Return the weight [m, c, kh, kw] flattened to [m, n]."""
        assert isinstance(module, nn.Conv2d)
        return module.weight.detach().flatten(1)

    def rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor | None:
        """Return the patches [B, P, n] under a grid of at most `MAX_POSITIONS` output positions."""
        assert isinstance(module, nn.Conv2d)
        if inputs.ndim != 4 or inputs.shape[0] != samples:
            return None
        padded = _pad(module, inputs)
        (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
        height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
        width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
        y, x = _grid(height, width, inputs.device)
        # Gather instead of unfolding everything: only the chosen patches are ever copied.
        rows = (y * sh)[:, None] + torch.arange(kh, device=inputs.device) * dh  # (P, kh)
        columns = (x * sw)[:, None] + torch.arange(kw, device=inputs.device) * dw  # (P, kw)
        patches = padded[:, :, rows[:, :, None], columns[:, None, :]]  # (B, c, P, kh, kw)
        return patches.transpose(1, 2).reshape(samples, len(y), -1)

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
            _pad(module, inputs), module.kernel_size, module.dilation, 0, module.stride
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

    def sharing(self, module: nn.Module) -> Hashable:
        """Convolutions on one tensor see the same patches if their geometry agrees."""
        assert isinstance(module, nn.Conv2d)
        return (
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.padding_mode,
        )

    def build(self, module: nn.Module, rank: int, *, bias: bool) -> nn.Module:
        """Return an unfilled LowRankConv2d."""
        assert isinstance(module, nn.Conv2d)
        return LowRankConv2d(module, rank, bias=bias)

    def fill(self, lowrank: nn.Module, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        """Write up [m, r] into the 1×1 and down [r, n] into the k×k convolution."""
        assert isinstance(lowrank, LowRankConv2d)
        with torch.no_grad():
            lowrank.weight.copy_(up[:, :, None, None])
            lowrank.down.weight.copy_(down.reshape(lowrank.down.weight.shape))
            if bias is not None:
                assert lowrank.bias is not None
                lowrank.bias.copy_(bias)

    def factors(self, lowrank: nn.Module) -> tuple[Tensor, Tensor]:
        """Return (weight [m, r], down.weight flattened to [r, n])."""
        assert isinstance(lowrank, LowRankConv2d)
        return lowrank.weight.detach().flatten(1), lowrank.down.weight.detach().flatten(1)

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return an nn.Conv2d with the factors' product and the geometry of the first."""
        assert isinstance(lowrank, LowRankConv2d)
        down = lowrank.down
        convolution = nn.Conv2d(
            down.in_channels,
            lowrank.out_channels,
            down.kernel_size,  # type: ignore[arg-type]  # torch types it tuple[int, ...]
            stride=down.stride,  # type: ignore[arg-type]
            padding=down.padding,  # type: ignore[arg-type]
            dilation=down.dilation,  # type: ignore[arg-type]
            padding_mode=down.padding_mode,
            bias=lowrank.bias is not None,
            device=down.weight.device,
            dtype=down.weight.dtype,
        )
        return write_dense(convolution, product(*self.factors(lowrank)), lowrank.bias)


def _pad(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Pad the input [B, c, H, W] as the convolution itself would."""
    # torch keeps the padding of both sides of the last two dimensions here, "same" included.
    amounts = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, amounts, mode=mode)


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows and columns [P] of an evenly spaced grid over H'×W' positions."""
    side = int(MAX_POSITIONS**0.5)
    y = _spaced(height, max(side, MAX_POSITIONS // max(width, 1)))
    x = _spaced(width, max(side, MAX_POSITIONS // max(height, 1)))
    grid = torch.cartesian_prod(y, x).to(device)
    return grid[:, 0], grid[:, 1]


def _spaced(length: int, count: int) -> Tensor:
    """Return at most ``count`` indices, evenly spaced over ``range(length)``."""
    count = min(length, count)
    return ((torch.arange(count) * 2 + 1) * length) // (2 * count)


LAYER_KINDS.register("conv2d")(Conv2dKind())
