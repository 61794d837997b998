"""nn.Conv2d in spatial form: kh×1 to r channels, then 1×kw (Jaderberg et al., arXiv 1405.3866)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.layers.conv2d import Conv2dKind
from compressor.layers.kinds import LAYER_KINDS, product, write_dense
from compressor.layers.lowrank import LowRankSpatialConv2d


class SpatialConv2dKind(Conv2dKind):
    """The other form of convolutions k×k: rows, W [m, n] and outputs are those of `Conv2dKind`.

    With W folded to [m·kw, c·kh], its rank is the number of channels between the two convolutions.
    As factors of W itself they are up [m, r·kw] and down [r·kw, n], the latter the Kronecker
    product of the vertical filters [r, c·kh] with the identity [kw, kw].
    """

    name = "conv2d-spatial"
    lowrank_type = LowRankSpatialConv2d

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is a dense convolution with a kernel over both axes."""
        if not super().matches(module):
            return False
        assert isinstance(module, nn.Conv2d)
        return min(module.kernel_size) > 1

    def folded(self, module: nn.Module) -> tuple[int, int]:
        """Return (m·kw, c·kh)."""
        assert isinstance(module, nn.Conv2d)
        kh, kw = module.kernel_size
        return module.out_channels * kw, module.in_channels * kh

    def inner_rows(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> float:
        """Return W/W': the first convolution makes H'×W positions, of which the second H'×W'."""
        del module
        return inputs.shape[3] / outputs.shape[3]

    def fill(self, lowrank: nn.Module, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        """Write up [m, r·kw] into the second convolution and the filters of down into the first."""
        layer = self._factorized(lowrank)
        taps = layer.kernel_size[1]
        filters = down.reshape(layer.rank, taps, -1, taps)[:, 0, :, 0]  # (r, c·kh)
        super().fill(lowrank, up, filters, bias)

    def factors(self, lowrank: nn.Module) -> tuple[Tensor, Tensor]:
        """Return (up [m, r·kw], down [r·kw, n])."""
        up, filters = super().factors(lowrank)
        taps = self._factorized(lowrank).kernel_size[1]
        return up, torch.kron(filters.contiguous(), torch.eye(taps).to(filters))

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return a dense convolution with the factors' product and the geometry of both."""
        layer = self._factorized(lowrank)
        down = layer.down
        padding = layer.padding
        if not isinstance(padding, str):
            padding = down.padding[0], padding[1]
        convolution = nn.Conv2d(
            down.in_channels,
            layer.out_channels,
            (down.kernel_size[0], layer.kernel_size[1]),
            stride=(down.stride[0], layer.stride[1]),
            padding=padding,
            dilation=(down.dilation[0], layer.dilation[1]),
            padding_mode=down.padding_mode,
            bias=layer.bias is not None,
            device=down.weight.device,
            dtype=down.weight.dtype,
        )
        return write_dense(convolution, product(*self.factors(layer)), layer.bias)


LAYER_KINDS.register("conv2d-spatial")(SpatialConv2dKind())
