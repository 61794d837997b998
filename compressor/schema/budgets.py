"""Budgets, and what a search for a plan within them came by."""

from __future__ import annotations

from compressor.schema.losses import PairedLoss
from compressor.schema.strict import Strict


class BudgetFigures(Strict):
    """One budget, and what the model came to.

    Args:
        budget: The budget as written.
        limit: Most that it allows, as people read it.
        reached: What the compressed model came to.
        dense: What the dense model has.
        met: Whether it is kept to.
    """

    budget: str
    limit: str
    reached: str
    dense: str
    met: bool


class PromisedLoss(PairedLoss):
    """A loss on the selection data beside the most that a ``drop=`` budget allows of it.

    Its interval is at 90 %, so that its upper end is a one-sided bound at 95 %.
    """

    budget: str
    most: float


class Trial(Strict):
    """One step of the search for the smallest model that keeps a ``drop=`` budget.

    Args:
        share: Weights kept of the layers that can be factorized.
        losses: What was lost, a budget each.
        kept: Whether every one was kept to.
    """

    share: float
    losses: tuple[PromisedLoss, ...]
    kept: bool


class Pace(Strict):
    """A forward's time under a ``latency=`` budget, both models timed in turn; milliseconds."""

    budget: str
    dense: float
    compressed: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the compressed model keeps to the limit."""
        return self.compressed <= self.limit
