"""How far an accuracy counted on few samples may be from the true one."""

from __future__ import annotations

LEVEL = 0.95


def wilson(share: float | None, samples: int) -> tuple[float, float] | None:
    """Return the 95 % score interval of a share of ``samples`` independent samples.

    Wilson, Journal of the American Statistical Association 22 (1927), 209–212, as SciPy has it;
    unlike the normal approximation it stays within [0, 1], at 0 and 1 too.

    Args:
        share: Share of successes, or None where it is unknown.
        samples: Samples it was counted on.

    Returns:
        Lower and upper end; None where nothing was counted.
    """
    if share is None or samples == 0:
        return None
    from scipy.stats import binomtest

    found = binomtest(round(share * samples), samples).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)
