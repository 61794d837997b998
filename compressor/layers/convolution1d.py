"""nn.Conv1d over sequences; `compressor.layers.conv1d` is GPT-2's Conv1D, a linear layer."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.layers.kinds import LAYER_KINDS, computed_weight, product, write_dense
from compressor.layers.lowrank import LowRankConv1d

MAX_POSITIONS = 64
"""Output positions per sample that statistics are taken from; a coarser grid is used above it."""

_PLAIN = (nn.Conv1d.forward, nn.Conv1d._conv_forward)


class Convolution1dKind:
    """Convolutions over one axis; rows are windows [c·k], W is the weight flattened to [m, n]."""

    name = "convolution1d"

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is an nn.Conv1d; `refusal` sorts out foreign subclasses."""
        return isinstance(module, nn.Conv1d) and not isinstance(module, LowRankConv1d)

    def refusal(self, module: nn.Module) -> str | None:
        """Refuse depthwise, grouped and parametrized convolutions and foreign forwards."""
        assert isinstance(module, nn.Conv1d)
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
        """Return (out_channels, in_channels·k)."""
        assert isinstance(module, nn.Conv1d)
        return module.out_channels, module.weight[0].numel()

    def matrix(self, module: nn.Module) -> Tensor:
        """Return the weight [m, c, k] flattened to [m, n]."""
        assert isinstance(module, nn.Conv1d)
        return module.weight.detach().flatten(1)

    def rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor | None:
        """Return the windows [B, P, n] under at most `MAX_POSITIONS` output positions."""
        assert isinstance(module, nn.Conv1d)
        if inputs.ndim != 3 or inputs.shape[0] != samples:
            return None
        windows = self._windows(module, inputs)  # (B, c, L', k), a view
        return windows[:, :, _grid(windows.shape[2])].transpose(1, 2).flatten(2)

    def all_rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor:
        """Return the windows [B, L', n] under every output position."""
        assert isinstance(module, nn.Conv1d)
        del samples
        return self._windows(module, inputs).transpose(1, 2).flatten(2)

    def output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [B, m, L'] at the positions of `rows`, as [B, P, m]."""
        del module, samples
        return outputs[:, :, _grid(outputs.shape[2])].transpose(1, 2)

    def all_output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [B, m, L'] as [B, L', m]."""
        del module, samples
        return outputs.transpose(1, 2)

    def sharing(self, module: nn.Module) -> Hashable:
        """Convolutions on one tensor see the same windows if their geometry agrees."""
        assert isinstance(module, nn.Conv1d)
        return (
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.padding_mode,
        )

    def build(self, module: nn.Module, rank: int, *, bias: bool) -> nn.Module:
        """Return an unfilled LowRankConv1d."""
        assert isinstance(module, nn.Conv1d)
        return LowRankConv1d(module, rank, bias=bias)

    def fill(self, lowrank: nn.Module, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        """Write up [m, r] into the convolution of width 1 and down [r, n] into the other."""
        assert isinstance(lowrank, LowRankConv1d)
        with torch.no_grad():
            lowrank.weight.copy_(up[:, :, None])
            lowrank.down.weight.copy_(down.reshape(lowrank.down.weight.shape))
            if bias is not None:
                assert lowrank.bias is not None
                lowrank.bias.copy_(bias)

    def factors(self, lowrank: nn.Module) -> tuple[Tensor, Tensor]:
        """Return (weight [m, r], down.weight flattened to [r, n])."""
        assert isinstance(lowrank, LowRankConv1d)
        return lowrank.weight.detach().flatten(1), lowrank.down.weight.detach().flatten(1)

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return an nn.Conv1d with the factors' product and the geometry of the first."""
        assert isinstance(lowrank, LowRankConv1d)
        down = lowrank.down
        convolution = nn.Conv1d(
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

    @staticmethod
    def _windows(module: nn.Conv1d, inputs: Tensor) -> Tensor:
        """Return the inputs [B, c, L], padded, as windows [B, c, L', k]."""
        amounts = module._reversed_padding_repeated_twice
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = functional.pad(inputs, amounts, mode=mode)
        (kernel,), (stride,), (dilation,) = module.kernel_size, module.stride, module.dilation
        span = dilation * (kernel - 1) + 1
        return padded.unfold(2, span, stride)[..., ::dilation]


def _grid(length: int) -> Tensor:
    """Return at most `MAX_POSITIONS` indices, evenly spaced over ``range(length)``."""
    count = min(length, MAX_POSITIONS)
    return ((torch.arange(count) * 2 + 1) * length) // (2 * count)


LAYER_KINDS.register("convolution1d")(Convolution1dKind())
