"""The budgets of a sweep: as given, or spread over what the model can reach."""

from __future__ import annotations

import math

from compressor.errors import UsageError
from compressor.layers.candidates import Candidates
from compressor.methods.budget import smallest

KINDS = ("layers", "params")


def ladder(kind: str, points: int, candidates: Candidates, *, multiple: int = 1) -> tuple[str, ...]:
    """Return budgets spread evenly over the shares that can be reached, the largest first.

    The range from the smallest reachable share to 1 is cut into as many equal parts, and each
    budget is the middle of one, rounded up to a tenth of a percent: 95 %, 85 %, … 5 % for ten
    points of ``layers``. A smallest share that lies below the lowest of these counts as 0.

    Args:
        kind: ``"layers"`` or ``"params"``.
        points: Number of budgets.
        candidates: The layers that share each.
        multiple: Ranks are multiples of this.

    Raises:
        UsageError: If the kind is no share.
    """
    if kind not in KINDS:
        raise UsageError(
            f"A ladder of {kind!r} budgets cannot be made: --budget-kind takes "
            f"{' or '.join(KINDS)}. Name the budgets of other kinds with --budgets."
        )
    floor = smallest(candidates, multiple=multiple)
    outside = candidates.parameters - candidates.layer_parameters
    low = (
        floor / candidates.layer_parameters
        if kind == "layers"
        else (outside + floor) / candidates.parameters
    )
    if low <= 0.5 / points:
        low = 0.0
    shares = [low + (1 - low) * (index + 0.5) / points for index in reversed(range(points))]
    return tuple(f"{kind}={math.ceil(share * 1000 - 1e-9) / 10:g}%" for share in shares)
