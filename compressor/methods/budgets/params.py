"""``params=80%`` or ``params=20M``: the parameters of the whole model."""

from __future__ import annotations

import math
from dataclasses import replace

from compressor.methods.budget import BUDGETS, Budget
from compressor.methods.budgets.kind import CountedKind, constraint_of
from compressor.methods.constraints import Constraint, costs_of_weights
from compressor.methods.subject import Subject


class Params(CountedKind):
    """All parameters, embeddings, heads and norms included."""

    def constraint(self, budget: Budget, subject: Subject) -> Constraint:
        """Every weight costs one; the limit is rounded down to whole weights."""
        found = subject.candidates
        made = constraint_of(
            budget,
            costs_of_weights(found.layers, dict.fromkeys(found.layers, 1.0)),
            fixed=float(found.parameters - found.layer_parameters),
        )
        return replace(made, limit=float(math.floor(made.limit + 1e-9)))


UNITS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}

BUDGETS.register("params")(Params("params", ("params=80%", "params=20M"), UNITS))
