"""GPT-2's Conv1D (a linear layer that stores its weight transposed) as a layer kind."""

from __future__ import annotations

import sys

from torch import Tensor, nn

from compressor.layers.kinds import LAYER_KINDS, product, write_dense
from compressor.layers.linear import LinearKind
from compressor.layers.lowrank import LowRankLinear


class Conv1DKind(LinearKind):
    """transformers' Conv1D: weight [n, m]; it becomes a LowRankLinear like any linear layer."""

    name = "conv1d"

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is transformers' Conv1D, without importing transformers."""
        defining = sys.modules.get("transformers.pytorch_utils")
        return defining is not None and isinstance(module, defining.Conv1D)

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (m, n) of the transposed weight."""
        columns, rows = self._stored(module).shape
        return rows, columns

    def matrix(self, module: nn.Module) -> Tensor:
        """Return the weight as [m, n]."""
        return self._stored(module).T

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return a transformers Conv1D with the factors' product, transposed; it has a bias."""
        from transformers.pytorch_utils import Conv1D

        assert isinstance(lowrank, LowRankLinear)
        weight = product(*self.factors(lowrank))
        convolution = Conv1D(lowrank.out_features, lowrank.in_features)  # type: ignore[no-untyped-call]
        return write_dense(convolution.to(weight), weight.T, lowrank.bias)

    @staticmethod
    def _stored(module: nn.Module) -> Tensor:
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()


LAYER_KINDS.register("conv1d")(Conv1DKind())
