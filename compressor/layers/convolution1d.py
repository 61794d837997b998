"""nn.Conv1d over sequences; `compressor.layers.conv1d` is GPT-2's Conv1D, a linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from compressor.layers.convolution import MAX_POSITIONS, ConvolutionKind, padded, spaced
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.lowrank import LowRankConv1d


class Convolution1dKind(ConvolutionKind):
    """Convolutions over one axis; rows are windows [c·k], W is the weight flattened to [m, n]."""

    name = "convolution1d"
    lowrank_type = LowRankConv1d

    def rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor | None:
        """Return the windows [B, P, n] under at most `MAX_POSITIONS` output positions."""
        assert isinstance(module, nn.Conv1d)
        if inputs.ndim != 3 or inputs.shape[0] != samples:
            return None
        windows = self._windows(module, inputs)  # (B, c, L', k), a view
        return windows[:, :, spaced(windows.shape[2], MAX_POSITIONS)].transpose(1, 2).flatten(2)

    def all_rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor:
        """Return the windows [B, L', n] under every output position."""
        assert isinstance(module, nn.Conv1d)
        del samples
        return self._windows(module, inputs).transpose(1, 2).flatten(2)

    def output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [B, m, L'] at the positions of `rows`, as [B, P, m]."""
        del module, samples
        return outputs[:, :, spaced(outputs.shape[2], MAX_POSITIONS)].transpose(1, 2)

    def all_output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [B, m, L'] as [B, L', m]."""
        del module, samples
        return outputs.transpose(1, 2)

    @staticmethod
    def _windows(module: nn.Conv1d, inputs: Tensor) -> Tensor:
        """Return the inputs [B, c, L], padded, as windows [B, c, L', k]."""
        (kernel,), (stride,), (dilation,) = module.kernel_size, module.stride, module.dilation
        span = dilation * (kernel - 1) + 1
        return padded(module, inputs).unfold(2, span, stride)[..., ::dilation]


LAYER_KINDS.register("convolution1d")(Convolution1dKind())
