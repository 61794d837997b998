"""Budgets as people write them (``layers=50%``), and what they allow the layers to keep."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.errors import BudgetError, UsageError
from compressor.layers.candidates import Candidates
from compressor.registry import Registry

Ceiling = Callable[[Candidates, float], float]
"""From the candidates and a share to the most weights that the candidates may keep."""

BUDGETS: Registry[Ceiling] = Registry("budget", group="budgets")

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*")


@dataclass(frozen=True)
class Budget:
    """One budget: a registered kind and the share it grants.

    Args:
        kind: Name of the kind, for instance ``"layers"``.
        share: Share granted, in (0, 1].
    """

    kind: str
    share: float

    def __str__(self) -> str:
        """Return the budget as a person would write it."""
        return f"{self.kind}={self.share:.6g}"

    def weights(self, candidates: Candidates) -> int:
        """Return the most weights that the candidates may keep together."""
        return math.floor(BUDGETS.get(self.kind)(candidates, self.share) + 1e-9)


def parse_budget(text: str) -> Budget:
    """Parse ``kind=share``, the share in percent (``50%``) or as a fraction (``0.5``).

    Raises:
        UsageError: If it cannot be read, or the share is not above 0 and at most 100 %.
    """
    kind, separator, value = text.partition("=")
    match = _NUMBER.fullmatch(value)
    if not separator or match is None:
        raise UsageError(
            f"Cannot read the budget {text!r}. Expected kind=share, for instance layers=50% or "
            f"params=0.8; kinds: {', '.join(BUDGETS.names())}."
        )
    BUDGETS.get(kind.strip())
    share = float(match[1]) / (100 if match[2] else 1)
    if not 0 < share <= 1:
        raise UsageError(
            f"The budget {text!r} grants {share:.4g} of the parameters; expected more than 0 and "
            "at most 100 %. A share without a percent sign is a fraction: write 50% or 0.5."
        )
    return Budget(kind.strip(), share)


def affordable(budgets: Sequence[Budget], candidates: Candidates, *, multiple: int = 1) -> int:
    """Return the most weights that the candidates may keep under all budgets together.

    Args:
        budgets: At least one.
        candidates: The layers that share them.
        multiple: Ranks are multiples of this.

    Raises:
        UsageError: If there is no budget.
        BudgetError: If the smallest model that ranks can reach is above a budget; the message
            names the smallest reachable share and what stands in the way.
    """
    if not budgets:
        raise UsageError("No budget was given. Pass one, for instance --budget layers=50%.")
    if not candidates.layers:
        raise BudgetError(
            f"The budget {budgets[0]} cannot be met: no layer of this model can be factorized. "
            "`compressor inspect` lists why each is left dense."
        )
    floor = smallest(candidates, multiple=multiple)
    for budget in budgets:
        if budget.weights(candidates) < floor:
            raise BudgetError(_unreachable(budget, candidates, floor, multiple))
    return min(budget.weights(candidates) for budget in budgets)


def smallest(candidates: Candidates, *, multiple: int = 1) -> int:
    """Return the weights that the candidates keep at the least rank, a multiple of ``multiple``."""
    return sum(layer.cost(multiple) for layer in candidates.layers.values())


def _unreachable(budget: Budget, candidates: Candidates, floor: int, multiple: int) -> str:
    outside = candidates.parameters - candidates.layer_parameters
    share = {
        "layers": floor / max(candidates.layer_parameters, 1),
        "params": (outside + floor) / candidates.parameters,
    }.get(budget.kind)
    reach = "" if share is None else f" The smallest reachable share is {_percent(share)} %."
    steps = "" if multiple == 1 else f" (Ranks are multiples of {multiple} here.)"
    return (
        f"The budget {budget} cannot be met.{reach}{steps} Outside the "
        f"{len(candidates.layers)} layers that can be factorized lie {outside:,} of "
        f"{candidates.parameters:,} parameters (embeddings, heads, norms, biases); `compressor "
        "inspect` lists why each layer is left dense, and --include takes more of them."
    )


def _percent(share: float) -> str:
    """Write a share in percent, rounded up so that the printed value is reachable."""
    return f"{math.ceil(share * 10000) / 100:.2f}"


def _layers(candidates: Candidates, share: float) -> float:
    return share * candidates.layer_parameters


def _params(candidates: Candidates, share: float) -> float:
    return share * candidates.parameters - (candidates.parameters - candidates.layer_parameters)


BUDGETS.register("layers")(_layers)
BUDGETS.register("params")(_params)
