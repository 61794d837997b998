"""The budgets of a sweep: as given, or spread over what the model can reach."""

from __future__ import annotations

import math

from compressor.errors import UsageError
from compressor.methods.budget import BUDGETS, least_cost, parse_budget
from compressor.methods.subject import Subject


def ladder(kind: str, points: int, subject: Subject, *, multiple: int = 1) -> tuple[str, ...]:
    """Return budgets spread evenly over the shares that can be reached, the largest first.

    The range from the smallest reachable share to 1 is cut into as many equal parts, and each
    budget is the middle of one, rounded up to a tenth of a percent: 95 %, 85 %, … 5 % for ten
    points of ``layers``. A smallest share that lies below the lowest of these counts as 0.

    Args:
        kind: A kind of budget that grants shares, for instance ``"layers"`` or ``"flops"``.
        points: Number of budgets.
        subject: What budgets are counted on.
        multiple: Ranks are multiples of this.

    Raises:
        UsageError: If the kind is no share.
    """
    constraint = None
    if BUDGETS.get(kind).shares:
        whole = parse_budget(f"{kind}=100%")
        constraint = BUDGETS.get(kind).constraint(whole, subject)
    if constraint is None:
        kinds = ", ".join(name for name, member in BUDGETS.items() if member.shares)
        raise UsageError(
            f"A ladder of {kind!r} budgets cannot be made: --budget-kind takes one that grants "
            f"shares ({kinds}). Name the budgets of other kinds with --budgets."
        )
    floor = least_cost(constraint, subject.candidates, multiple=multiple)
    low = (constraint.fixed + floor) / constraint.dense
    if low <= 0.5 / points:
        low = 0.0
    shares = [low + (1 - low) * (index + 0.5) / points for index in reversed(range(points))]
    return tuple(f"{kind}={math.ceil(share * 1000 - 1e-9) / 10:g}%" for share in shares)
