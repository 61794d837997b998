"""``latency=60%@32`` or ``latency=12ms``: the time of one forward at a batch size."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compressor.errors import UsageError
from compressor.evaluation.speed_table import liked_multiple
from compressor.methods.budget import BUDGETS, Budget
from compressor.methods.constraints import Constraint
from compressor.methods.subject import Subject


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a forward: predicted by the speed table, verified by `methods.pace`.

    The batch size stands behind the @; 1 where none does.
    """

    name: str = "latency"
    examples: tuple[str, ...] = ("latency=60%@32", "latency=12ms")
    units: dict[str, float] = field(default_factory=lambda: {"ms": 1.0, "s": 1000.0, "us": 1e-3})
    shares: bool = True

    def check(self, budget: Budget) -> None:
        """Refuse what is no batch size behind the @."""
        batch_of(budget)

    def show(self, amount: float) -> str:
        """Return milliseconds."""
        return f"{amount:.4g} ms"

    def multiple(self, subject: Subject) -> int:
        """Return what the device likes."""
        return liked_multiple(subject.forward.device)

    def constraint(self, budget: Budget, subject: Subject) -> Constraint:
        """Each rank costs what the layer was measured to take at it.

        Layers timed by themselves may take more together than within the model, whose caches are
        warm: their times are then scaled to nine tenths of the model's.
        """
        batch = batch_of(budget)
        total, table = subject.dense_milliseconds(batch), subject.speed_table(batch)
        alone = sum(speed.dense for speed in table.values())
        scale = min(1.0, 0.9 * total / alone) if alone > 0 else 1.0
        layers = subject.candidates.layers
        costs = {
            name: scale
            * np.asarray(speed.at_every_rank(layers[name].full_rank, layers[name].break_even_rank))
            for name, speed in table.items()
        }
        fixed = total - scale * alone
        limit = budget.amount * total if budget.relative else budget.amount
        return Constraint(str(budget), costs, limit - fixed, fixed, total)


def batch_of(budget: Budget) -> int:
    """Return the batch size that a ``latency=`` budget is stated at.

    Raises:
        UsageError: If it is no number above 0.
    """
    text = budget.at or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"The budget latency=…@{text} is stated at no batch size: expected a number above 0, "
            "for instance latency=60%@32."
        )
    return int(text)


BUDGETS.register("latency")(Latency())
