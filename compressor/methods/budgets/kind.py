"""What budgets that ranks alone decide have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compressor.errors import UsageError
from compressor.methods.budget import Budget
from compressor.methods.constraints import Constraint, Floats
from compressor.methods.subject import Subject

DECIMAL_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class CountedKind:
    """A budget on something that can be counted before anything runs.

    Args:
        name: Name it is registered under.
        examples: Budgets of this kind as a person writes them.
        units: What each unit of an amount is worth.
        shares: Whether a share of the dense model's cost can be granted.
    """

    name: str
    examples: tuple[str, ...]
    units: Mapping[str, float] = field(default_factory=dict)
    shares: bool = True

    def check(self, budget: Budget) -> None:
        """Refuse anything behind an @: it is counted at nothing in particular."""
        if budget.at is not None:
            raise UsageError(
                f"The budget {self.name} is counted at nothing in particular: leave out "
                f"@{budget.at}. For instance {self.examples[0]}."
            )

    def multiple(self, subject: Subject) -> int:
        """Return 1: any rank will do."""
        del subject
        return 1

    def show(self, amount: float) -> str:
        """Return an amount with three significant digits and a decimal prefix."""
        for step, prefix in DECIMAL_STEPS:
            if amount >= step:
                return f"{amount / step:.4g} {prefix}"
        return f"{amount:.4g}"


def constraint_of(budget: Budget, costs: Mapping[str, Floats], *, fixed: float) -> Constraint:
    """Return the constraint that a budget makes of what ranks cost.

    Args:
        budget: The budget.
        costs: Cost of each layer at each rank.
        fixed: What else counts towards the budget, whatever the ranks.
    """
    dense = fixed + sum(float(cost[-1]) for cost in costs.values())
    granted = budget.amount * dense if budget.relative else budget.amount
    return Constraint(str(budget), costs, granted - fixed, fixed, dense)
