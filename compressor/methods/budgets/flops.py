"""``flops=50%`` or ``flops=300M``: floating-point operations of one sample's forward."""

from __future__ import annotations

from compressor.methods.budget import BUDGETS, Budget
from compressor.methods.budgets.kind import CountedKind, constraint_of
from compressor.methods.constraints import Constraint, costs_of_weights
from compressor.methods.subject import Subject


class Flops(CountedKind):
    """FLOPs as torch's FlopCounterMode counts them, a multiply-add as two.

    A product with W [m, n] at P positions takes 2 P m n, its two factors 2 P r (m + n), and the
    same holds of convolutions at P output positions: FLOPs go with the weights that are kept. In
    spatial form the first factor works at more positions than the second where that one strides.
    """

    def constraint(self, budget: Budget, subject: Subject) -> Constraint:
        """Each weight costs its share of the dense layer's FLOPs."""
        layers = subject.candidates.layers
        total, by_module = subject.flops
        per_weight = {
            name: by_module.get(name, 0) / layer.parameters for name, layer in layers.items()
        }
        costs = costs_of_weights(
            layers, per_weight, {name: layer.rank_work for name, layer in layers.items()}
        )
        fixed = total - sum(by_module.get(name, 0) for name in layers)
        return constraint_of(budget, costs, fixed=float(fixed))


UNITS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

BUDGETS.register("flops")(
    Flops("flops", ("flops=50%", "flops=300M"), {**UNITS, "MFLOPs": 1e6, "GFLOPs": 1e9})
)
