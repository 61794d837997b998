"""Rank correlations over layers, partial ones, and their bootstrap intervals (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

DRAWS = 2000
FEWEST = 6
"""Layers below which no correlation is told."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over n layers, with a 95 % bootstrap interval over layers (percentiles)."""

    rho: float
    low: float
    high: float
    layers: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def spearman(first: Values, second: Values, given: Values | None = None) -> float:
    """Return Spearman's ρ [k] of two vectors [k, n], or the partial one given a third.

    Partial: with r the correlations of ranks, (r_xy − r_xz r_yz)/√((1 − r_xz²)(1 − r_yz²))
    (Kendall 1942). NaN where a vector is constant, or z tells one of them completely.
    """
    return float(_spearman(first[None], second[None], None if given is None else given[None])[0])


def correlation(
    first: Values, second: Values, given: Values | None = None, *, seed: int = 0
) -> Correlation | None:
    """Return ρ with its interval; None for fewer than `FEWEST` layers with all values finite.

    Args:
        first: One value a layer [n]; layers where one is not finite are left out.
        second: The other [n].
        given: What is held fixed [n].
        seed: Of the bootstrap's draws.
    """
    columns = [first, second] if given is None else [first, second, given]
    known = np.isfinite(np.stack(columns)).all(0)
    columns = [column[known] for column in columns]
    count = int(known.sum())
    if count < FEWEST:
        return None
    rho = spearman(*columns)
    if not np.isfinite(rho):
        return None
    draws = np.random.default_rng(seed).integers(0, count, (DRAWS, count))
    found = _spearman(*(column[draws] for column in columns))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return Correlation(rho, float(low), float(high), count)


def _spearman(first: Values, second: Values, given: Values | None = None) -> Values:
    if given is None:
        return _pearson(rankdata(first, axis=1), rankdata(second, axis=1))
    ranks = [rankdata(values, axis=1) for values in (first, second, given)]
    xy, xz, yz = (_pearson(ranks[a], ranks[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    left = (1 - xz**2) * (1 - yz**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        partial = (xy - xz * yz) / np.sqrt(left)
    return np.where(left > 1e-12, partial, np.nan)


def _pearson(first: Values, second: Values) -> Values:
    x = first - first.mean(1, keepdims=True)
    y = second - second.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return found
