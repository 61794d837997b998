"""nn.Linear as a layer kind."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from compressor.layers.kinds import (
    LAYER_KINDS,
    computed_weight,
    product,
    sample_rows,
    write_dense,
)
from compressor.layers.lowrank import LowRankLinear


class LinearKind:
    """Linear layers; rows are tokens or feature vectors [n], W is the weight [m, n] itself."""

    name = "linear"
    lookup = False

    def matches(self, module: nn.Module) -> bool:
        """Return whether ``module`` computes exactly what nn.Linear computes."""
        return (
            isinstance(module, nn.Linear)
            and not isinstance(module, LowRankLinear)
            and type(module).forward is nn.Linear.forward
            and not hasattr(module, "routed")  # an expert's layer is a kind of its own
        )

    def refusal(self, module: nn.Module) -> str | None:
        """Refuse weights that are computed anew at each access or call."""
        return computed_weight(module)

    def shape(self, module: nn.Module) -> tuple[int, int]:
        """Return (out_features, in_features)."""
        assert isinstance(module, nn.Linear)
        return module.out_features, module.in_features

    def matrix(self, module: nn.Module) -> Tensor:
        """Return the weight [m, n]."""
        assert isinstance(module, nn.Linear)
        return module.weight.detach()

    def reached(self, module: nn.Module) -> Tensor | None:
        """Return None: it is called on every row."""
        del module
        return None

    def rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor | None:
        """Return [..., n] as [samples, P, n]."""
        del module
        return sample_rows(inputs, samples)

    def all_rows(self, module: nn.Module, inputs: Tensor, samples: int) -> Tensor:
        """Return [..., n] as [samples, P, n]: every position is taken anyway."""
        del module
        return inputs.reshape(samples, -1, inputs.shape[-1])

    def output_rows(self, module: nn.Module, outputs: Tensor, samples: int) -> Tensor:
        """Return [..., m] as [samples, P, m]."""
        del module
        return outputs.reshape(samples, -1, outputs.shape[-1])

    all_output_rows = output_rows

    def sharing(self, module: nn.Module) -> Hashable:
        """Linear layers on one tensor see the same rows."""
        del module
        return "features-last"

    def build(self, module: nn.Module, rank: int, *, bias: bool) -> nn.Module:
        """Return an unfilled LowRankLinear."""
        rows, columns = self.shape(module)
        weight = self.matrix(module)
        lowrank = LowRankLinear(
            columns, rows, rank, bias=bias, device=weight.device, dtype=weight.dtype
        )
        lowrank.kind = self.name
        return lowrank

    def fill(self, lowrank: nn.Module, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        """Write up [m, r] and down [r, n]."""
        assert isinstance(lowrank, LowRankLinear)
        with torch.no_grad():
            lowrank.weight.copy_(up)
            lowrank.down.weight.copy_(down)
            if bias is not None:
                lowrank.bias.copy_(bias)

    def factors(self, lowrank: nn.Module) -> tuple[Tensor, Tensor]:
        """Return (weight [m, r], down.weight [r, n])."""
        assert isinstance(lowrank, LowRankLinear)
        return lowrank.weight.detach(), lowrank.down.weight.detach()

    def dense(self, lowrank: nn.Module) -> nn.Module:
        """Return an nn.Linear with the factors' product."""
        assert isinstance(lowrank, LowRankLinear)
        linear = nn.Linear(
            lowrank.in_features,
            lowrank.out_features,
            bias=lowrank.bias is not None,
            device=lowrank.weight.device,
            dtype=lowrank.weight.dtype,
        )
        return write_dense(linear, product(*self.factors(lowrank)), lowrank.bias)


LAYER_KINDS.register("linear")(LinearKind())
