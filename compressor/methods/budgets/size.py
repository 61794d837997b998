"""``size=40MB`` or ``size=50%``: bytes of the weight files on disk."""

from __future__ import annotations

from compressor.checkpoint.storage import storage_dtype
from compressor.methods.budget import BUDGETS, Budget
from compressor.methods.budgets.kind import CountedKind
from compressor.methods.constraints import Constraint, costs_of_weights
from compressor.methods.subject import Subject

HEADER = 128
"""Bytes that a tensor's entry in a safetensors header takes at most, beside its name: type, shape,
two offsets, and what a framework may lengthen its name by."""


class Size(CountedKind):
    """Bytes of the safetensors files: every tensor in its storage type, and their headers.

    The headers are an upper bound, so that the files stay within the budget: under 0.1 % of a model
    of 20 MB.
    """

    def show(self, amount: float) -> str:
        """Return decimal bytes: 40 MB."""
        return f"{super().show(amount)}B" if amount >= 1e3 else f"{amount:.0f} B"

    def constraint(self, budget: Budget, subject: Subject) -> Constraint:
        """Each weight costs the bytes of its storage type; a pair of factors one header more."""
        layers = subject.candidates.layers
        state = subject.model.state_dict()
        kept = {f"{name}.weight" for name in layers}
        seen: set[tuple[int, tuple[int, ...]]] = set()
        fixed = 8.0 + HEADER  # the length of the header and its metadata
        dense = 0.0
        for key, tensor in state.items():
            identity = (tensor.data_ptr() or id(tensor), tuple(tensor.shape))
            if identity in seen:
                continue  # a tied weight is stored once
            seen.add(identity)
            stored = storage_dtype(key, tensor, subject.storage_dtypes)
            size = float(tensor.numel() * stored.itemsize)
            dense += size
            fixed += HEADER + len(key) + (0.0 if key in kept else size)
        per_weight = {}
        for name in layers:
            key = f"{name}.weight"
            stored = storage_dtype(key, state[key], subject.storage_dtypes)
            per_weight[name] = float(stored.itemsize)
        costs = costs_of_weights(layers, per_weight)
        for name, layer in layers.items():
            costs[name][: layer.break_even_rank + 1] += HEADER + len(f"{name}.down.weight")
        granted = budget.amount * dense if budget.relative else budget.amount
        return Constraint(str(budget), costs, granted - fixed, fixed, dense)


UNITS = {
    "B": 1.0,
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("kMGT", 1)},
    "KB": 1000.0,
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)},
}

BUDGETS.register("size")(Size("size", ("size=50%", "size=40MB"), UNITS))
