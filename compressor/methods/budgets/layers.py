"""``layers=50%``: the share of the factorizable layers' parameters that is kept."""

from __future__ import annotations

import math
from dataclasses import replace

from compressor.methods.budget import BUDGETS, Budget
from compressor.methods.budgets.kind import CountedKind, constraint_of
from compressor.methods.constraints import Constraint, costs_of_weights
from compressor.methods.subject import Subject


class Layers(CountedKind):
    """Weights of the layers that can be factorized."""

    def constraint(self, budget: Budget, subject: Subject) -> Constraint:
        """Every weight costs one; the limit is rounded down to whole weights."""
        layers = subject.candidates.layers
        found = constraint_of(
            budget, costs_of_weights(layers, dict.fromkeys(layers, 1.0)), fixed=0.0
        )
        return replace(found, limit=float(math.floor(found.limit + 1e-9)))


BUDGETS.register("layers")(Layers("layers", ("layers=50%", "layers=0.5")))
