"""One matrix of one expert of a mixture: a linear layer that some of the tokens reach."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from compressor.layers.kinds import LAYER_KINDS, write_dense
from compressor.layers.linear import LinearKind
from compressor.layers.lowrank import LowRankLinear


class Routed(NamedTuple):
    """Which tokens an expert was last called on.

    Args:
        places: Their places [k] among all tokens.
        tokens: Number of all tokens.
    """

    places: Tensor
    tokens: int


class ExpertLinear(nn.Linear):
    """A linear layer that is called on the tokens routed to its expert, and told which.

    Attributes:
        routed: Set by the mixture before each call, on what replaces this layer too.
    """

    routed: Routed | None = None


class ExpertLinearKind(LinearKind):
    """Expert layers; rows are all tokens, zero where the router sent a token elsewhere.

    `reached` tells those rows apart, so that statistics are of the tokens of this expert alone.
    """

    name = "expert"

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` is an ExpertLinear."""
        return isinstance(module, ExpertLinear)

    def reached(self, module: nn.Module) -> Tensor | None:
        """Return the places of the tokens that were routed here."""
        return self._routed(module).places

    def rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor | None:
        """Return [k, n] spread over all tokens, as [samples, P, n]."""
        if self._routed(module).tokens % samples:
            return None
        return self._spread(module, inputs, samples)

    def all_rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor:
        """Return [k, n] spread over all tokens, as [samples, P, n]."""
        return self._spread(module, inputs, samples)

    def output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [k, m] spread over all tokens, as [samples, P, m]."""
        return self._spread(module, outputs, samples)

    all_output_rows = output_rows

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return an ExpertLinear with the factors' product."""
        assert isinstance(lowrank, LowRankLinear)
        linear = super().dense(lowrank)
        weight, bias = linear.weight, linear.bias
        assert isinstance(weight, Tensor)
        expert = ExpertLinear(
            lowrank.in_features,
            lowrank.out_features,
            bias=lowrank.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        return write_dense(expert, weight, bias if isinstance(bias, Tensor) else None)

    @staticmethod
    def _routed(module: nn.Module) -> Routed:
        routed = getattr(module, "routed", None)
        assert isinstance(routed, Routed), "the mixture tells an expert its tokens before each call"
        return routed

    def _spread(self, module: nn.Module, given: Tensor, samples: int) -> Tensor:
        places, tokens = self._routed(module)
        spread = torch.zeros(tokens, given.shape[-1], dtype=given.dtype, device=given.device)
        return spread.index_copy(0, places, given).reshape(samples, -1, given.shape[-1])


LAYER_KINDS.register("expert")(ExpertLinearKind())
