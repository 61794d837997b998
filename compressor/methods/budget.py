"""Budgets as people write them (``layers=50%``), and what they allow the layers to cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from compressor.errors import BudgetError, UsageError
from compressor.layers.candidates import Candidates
from compressor.methods.allocation import nearest_limits, options
from compressor.methods.constraints import Constraint, Constraints
from compressor.methods.subject import Subject
from compressor.registry import Registry

_VALUE = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*(?:@\s*(\S+)\s*)?")

SHOWN_DIGITS = 4
"""Significant digits that kinds show of an amount."""


@dataclass(frozen=True)
class Budget:
    """One budget: a registered kind and what it grants.

    Args:
        kind: Name of the kind, for instance ``"layers"``.
        amount: A share of the dense model's cost, in (0, 1], or an amount in the kind's unit.
        relative: Whether it is a share.
        at: What it is counted at, for kinds that ask: the batch size of ``latency=60%@32``.
        unit: The unit as written, for kinds that check it.
    """

    kind: str
    amount: float
    relative: bool = True
    at: str | None = None
    unit: str = field(default="", compare=False)

    def __str__(self) -> str:
        """Return the budget as a person would write it."""
        member = BUDGETS.get(self.kind)
        share = f"{100 * self.amount:.6g}%"
        shown = share if self.relative else member.show(self.amount).replace(" ", "")
        return f"{self.kind}={shown}{f'@{self.at}' if self.at else ''}"


class BudgetKind(Protocol):
    """One sort of budget: how it is written, and what ranks cost of it. One file each."""

    @property
    def name(self) -> str:
        """Return the name it is registered under."""
        ...

    @property
    def examples(self) -> tuple[str, ...]:
        """Return budgets of this kind as a person writes them."""
        ...

    @property
    def units(self) -> Mapping[str, float]:
        """Return what each unit of an amount is worth; none where only shares are granted.

        Where shares are granted too, an amount never goes without a unit: 50 may have meant 50 %.
        """
        ...

    @property
    def shares(self) -> bool:
        """Return whether a share of the dense model's cost can be granted."""
        ...

    def check(self, budget: Budget) -> None:
        """Check what stands behind the @.

        Raises:
            UsageError: If it has no meaning here.
        """
        ...

    def multiple(self, subject: Subject) -> int:
        """Return what ranks have to be multiples of for this kind, 1 where any will do."""
        ...

    def show(self, amount: float) -> str:
        """Return an amount as people read it: 40 MB."""
        ...

    def constraint(self, budget: Budget, subject: Subject) -> Constraint | None:
        """Return what each rank costs and the limit; None where only running the model tells."""
        ...


BUDGETS: Registry[BudgetKind] = Registry(
    "budget", group="budgets", modules=("compressor.methods.budgets",)
)


def parse_budget(text: str) -> Budget:
    """Parse ``kind=amount`` or ``kind=amount@what``.

    The amount is in percent (``50%``), a fraction (``0.5``), or has a unit of its kind (``40MB``).

    Raises:
        UsageError: If it cannot be read, or a share is not above 0 and at most 100 %.
    """
    kind, separator, value = text.partition("=")
    match = _VALUE.fullmatch(value)
    if not separator or match is None:
        raise UsageError(_unreadable(text))
    member = BUDGETS.get(kind.strip())
    number, unit, at = float(match[1]), match[2], match[3]
    budget = _amount(text, member, number, unit)
    if budget.amount <= 0 and member.shares:
        raise UsageError(_impossible_share(text, 0.0, member))
    budget = replace(budget, at=at, unit=unit)
    member.check(budget)
    return budget


def _amount(text: str, member: BudgetKind, number: float, unit: str) -> Budget:
    if unit in member.units:
        return Budget(member.name, number * member.units[unit], relative=False)
    if not member.shares or unit not in ("", "%"):
        units = ", ".join(unit for unit in member.units if unit) or "%"
        raise UsageError(
            f"Cannot read the budget {text!r}: {unit!r} is no unit of {member.name}. Expected one "
            f"of {units}, for instance {' or '.join(member.examples)}."
        )
    share = number / (100 if unit else 1)
    if not 0 < share <= 1:
        raise UsageError(_impossible_share(text, share, member))
    return Budget(member.name, share)


def _unreadable(text: str) -> str:
    return (
        f"Cannot read the budget {text!r}. Expected kind=share, for instance layers=50% or "
        f"params=0.8; kinds: {', '.join(BUDGETS.names())}."
    )


def _impossible_share(text: str, share: float, member: BudgetKind) -> str:
    amount = f" An amount has a unit: {member.examples[-1]}." if member.units else ""
    return (
        f"The budget {text!r} grants {share:.4g} of the dense model; expected more than 0 and "
        "at most 100 %. A share without a percent sign is a fraction: write 50% or 0.5."
        f"{amount}"
    )


@dataclass(frozen=True)
class Granted:
    """What budgets allow, and which of them cannot be met.

    Args:
        constraints: What the layers may cost: as asked, or where that cannot be, the nearest.
        multiple: What ranks are multiples of: what was asked for, and what the budgets ask for.
        unmet: A sentence for each budget that cannot be met.
    """

    constraints: Constraints
    multiple: int = 1
    unmet: tuple[str, ...] = ()


def granted(
    budgets: Sequence[Budget], subject: Subject, *, multiple: int = 1, best_effort: bool = False
) -> Granted:
    """Return what all budgets together allow the layers to cost.

    Args:
        budgets: At least one.
        subject: The dense model and the layers that share them.
        multiple: Ranks are multiples of this.
        best_effort: Grant the nearest that can be reached in place of an error.

    Raises:
        UsageError: If there is no budget.
        BudgetError: If the smallest model that ranks can reach is above a budget, or no model keeps
            to all of them; the message names the budget, what can be reached, and what stands in
            the way.
    """
    if not budgets:
        raise UsageError("No budget was given. Pass one, for instance --budget layers=50%.")
    if not subject.candidates.layers:
        raise BudgetError(
            f"The budget {budgets[0]} cannot be met: no layer of this model can be factorized. "
            "`compressor inspect` lists why each is left dense."
        )
    multiple = liked_by_all(budgets, subject, multiple=multiple)
    asked = [(budget, BUDGETS.get(budget.kind).constraint(budget, subject)) for budget in budgets]
    members, unmet = [], []
    for budget, constraint in asked:
        if constraint is None:
            continue
        floor = least_cost(constraint, subject.candidates, multiple=multiple)
        if floor > constraint.limit:
            unmet.append(_unreachable(budget, constraint, floor, subject.candidates, multiple))
        limit = max(constraint.limit, floor)
        members.append((budget, replace(constraint, limit=limit)))
    if not unmet and len(members) > 1:
        members, unmet = _together(members, subject.candidates, multiple)
    if unmet and not best_effort:
        raise BudgetError(" ".join(unmet))
    if not members:
        return Granted(Constraints(()), multiple, tuple(unmet))
    found = Constraints(tuple(constraint for _, constraint in members))
    return Granted(found, multiple, tuple(unmet))


def liked_by_all(budgets: Sequence[Budget], subject: Subject, *, multiple: int = 1) -> int:
    """Return what ranks are multiples of: what was asked for, and what each budget asks for."""
    return math.lcm(multiple, *(BUDGETS.get(budget.kind).multiple(subject) for budget in budgets))


def least_cost(constraint: Constraint, candidates: Candidates, *, multiple: int = 1) -> float:
    """Return the least that the candidates can cost together, at ranks that are multiples."""
    total = 0.0
    for name, layer in candidates.layers.items():
        costs = constraint.costs[name]
        total += min(
            costs[multiple : layer.break_even_rank + 1 : multiple].min(initial=np.inf), costs[-1]
        )
    return float(total)


def smallest(candidates: Candidates, *, multiple: int = 1) -> int:
    """Return the weights that the candidates keep at the least rank, a multiple of ``multiple``."""
    return sum(layer.cost(multiple) for layer in candidates.layers.values())


def _together(
    members: list[tuple[Budget, Constraint]], candidates: Candidates, multiple: int
) -> tuple[list[tuple[Budget, Constraint]], list[str]]:
    """Raise the limits that cannot be kept beside the others, and say which these are."""
    constraints = Constraints(tuple(constraint for _, constraint in members))
    layers = {
        name: options(layer, np.zeros(layer.full_rank + 1), constraints, multiple=multiple)
        for name, layer in candidates.layers.items()
    }
    cheapest = {name: int(option.ranks[0]) for name, option in layers.items()}
    if constraints.hold(cheapest):
        return members, []
    limits = nearest_limits(layers, constraints.limits)
    raised, unmet = [], []
    for (budget, constraint), limit in zip(members, limits, strict=True):
        if limit > constraint.limit:
            others = " and ".join(str(other) for other, _ in members if other != budget)
            reach = _reach(budget, constraint, float(limit))
            unmet.append(f"The budget {budget} cannot be met together with {others}.{reach}")
        raised.append((budget, replace(constraint, limit=float(limit))))
    return raised, unmet


def _unreachable(
    budget: Budget, constraint: Constraint, floor: float, candidates: Candidates, multiple: int
) -> str:
    steps = "" if multiple == 1 else f" (Ranks are multiples of {multiple} here.)"
    refusal = f"The budget {budget} cannot be met.{_reach(budget, constraint, floor)}{steps}"
    if budget.kind == "latency":
        return (
            f"{refusal} That takes every layer at its fastest, of the ranks that were timed, and "
            "what cannot be factorized."
        )
    outside = candidates.parameters - candidates.layer_parameters
    return (
        f"{refusal} Outside the "
        f"{len(candidates.layers)} layers that can be factorized lie {outside:,} of "
        f"{candidates.parameters:,} parameters (embeddings, heads, norms, biases); `compressor "
        "inspect` lists why each layer is left dense, and --include takes more of them."
    )


def _reach(budget: Budget, constraint: Constraint, floor: float) -> str:
    """Say what can be reached, rounded up so that what is printed can be asked for."""
    total = constraint.fixed + floor
    if budget.relative:
        share = np.ceil(total / max(constraint.dense, 1e-300) * 10000) / 100
        return f" The smallest reachable share is {share:.2f} %."
    amount = _rounded_up(total)
    return f" The smallest that can be reached is {BUDGETS.get(budget.kind).show(amount)}."


def _rounded_up(amount: float) -> float:
    """Return the next amount of as many digits as are shown."""
    if amount <= 0:
        return amount
    step = 10.0 ** (math.floor(math.log10(amount)) + 1 - SHOWN_DIGITS)
    return math.ceil(amount / step) * step
