"""The points of a frontier that a person asks for: its knee, the smallest within a loss (pure)."""

from __future__ import annotations

from collections.abc import Sequence


def knee(costs: Sequence[float], qualities: Sequence[float]) -> int | None:
    """Return where a rising curve bends most: the point furthest above the chord of its ends.

    Kneedle (Satopaa, Albrecht, Irwin and Raghavan, "Finding a 'Kneedle' in a Haystack", ICDCSW
    2011) without its smoothing, which a dozen points do not need: both axes are scaled to [0, 1]
    and the knee is the largest y − x.

    Args:
        costs: Cost of each point, in any order, no two alike.
        qualities: Quality of each.

    Returns:
        Its position; None where there are fewer than three points, the curve does not rise from
        its first end to its last, or no point lies above their chord.
    """
    order = sorted(range(len(costs)), key=lambda index: costs[index])
    if len(order) < 3:
        return None
    first, last = order[0], order[-1]
    low, high = min(qualities), max(qualities)
    if qualities[last] <= qualities[first]:
        return None

    def above(index: int) -> float:
        x = (costs[index] - costs[first]) / (costs[last] - costs[first])
        return (qualities[index] - low) / (high - low) - x

    best = max(order, key=above)
    chord = max(above(first), above(last))
    return best if above(best) > chord + 1e-12 else None


def smallest_within(
    costs: Sequence[float], qualities: Sequence[float], reference: float, tolerance: float
) -> int | None:
    """Return the cheapest point whose quality is at most ``tolerance`` below the reference.

    Returns:
        Its position; None where there is none.
    """
    within = [
        index for index, quality in enumerate(qualities) if quality >= reference - tolerance - 1e-12
    ]
    return min(within, key=lambda index: costs[index], default=None)
