"""Which points of a sweep choose how to truncate anew, and which take that from a neighbour."""

from __future__ import annotations

from compressor.methods.allocation import ALLOCATORS
from compressor.methods.budget import parse_budget
from compressor.methods.plan import Plan
from compressor.methods.recipe import Recipe

CHOOSING = 2
"""Points of a method that judge every recipe, at most: that costs several times what a point of a
settled recipe does, and what is best changes slowly with the budget."""


SEARCHED = ("drop", "latency")
"""Kinds of budgets whose plans are judged as they are made."""


def choosing_points(points: int) -> tuple[int, ...]:
    """Return for each position of a ladder the position of the point that chooses its recipe.

    These are the middles of equal parts, `CHOOSING` of them; a short ladder's points all choose.
    """
    if points <= CHOOSING:
        return tuple(range(points))
    middles = [(2 * part + 1) * points // (2 * CHOOSING) for part in range(CHOOSING)]
    return tuple(min(middles, key=lambda at: abs(at - own)) for own in range(points))


def settled(plan: Plan, budget: str) -> Recipe | None:
    """Return the recipe that another budget may be shared by, as it was chosen for a plan's.

    None where nothing was judged, so that nothing is saved; where the allocation is a method's own
    rule or was measured at the plan's ranks; and for a budget that only running models tells.
    """
    shared = plan.recipe.allocation in ALLOCATORS.names() and plan.selection
    searched = any(parse_budget(text).kind in SEARCHED for text in (*plan.budget, budget))
    return plan.recipe if shared and not searched else None
