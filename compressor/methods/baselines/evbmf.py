"""``evbmf``: the rank that empirical variational Bayes finds in each weight matrix, analytically.

Source: Nakajima, Sugiyama, Babacan & Tomioka, "Global analytic solution of fully-observed
variational Bayesian matrix factorization", JMLR 14 (2013), in the simpler form of their "Condition
for perfect dimensionality recovery by variational Bayesian PCA", JMLR 16 (2015); for networks Kim
et al., ICLR 2016, and MUSCO (Gusak et al., arXiv 1903.09973). W [L, M], L ≤ M, is taken for a
low-rank matrix plus Gaussian noise of variance s². Singular value γ carries signal if γ² > M s² x̲,
x̲ = (1 + τ̲)(1 + α/τ̲), α = L/M and τ̲ the root of Φ(τ) + Φ(τ/α) = 0, Φ(z) = log(1 + z)/z − 1/2. s²
minimises the free energy Σ_h ψ(γ_h²/(M s²)) within the papers' bounds.

The matrix is then truncated by plain SVD to the rank found (the solution's shrinkage of singular
values belongs to the noise model, and MUSCO leaves it out too).

Differs: the rule knows no budget. Where its ranks keep more than the budget allows, all of them
are scaled down by one common factor; where they keep less, they stay as found. A rank of 0 becomes
the smallest one. MUSCO alternates this with fine-tuning, and Tucker-2 decomposes convolutions;
here once, without training, on the matrix [out, in·kh·kw].
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from compressor.layers.candidates import Candidate
from compressor.methods.allocation import options
from compressor.methods.baselines.recipe_method import decided
from compressor.methods.constraints import Constraints, Floats
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS, Decision
from compressor.methods.metrics import Needs
from compressor.methods.recipe import Recipe
from compressor.progress import Progress

GRID = 400
"""Noise variances, evenly spaced in their logarithm, that the free energy is scanned at."""


class VariationalBayes:
    """Analytic rank of empirical variational Bayesian matrix factorization."""

    name = "evbmf"
    source = (
        "EVBMF, Nakajima et al., JMLR 14 (2013), γ² > M s² x̲; MUSCO, arXiv 1903.09973: analytic "
        "rank of the weights, scaled down to the budget by a common factor"
    )
    recipe = Recipe(metric="identity", allocation="evbmf")

    def needs(self, *, gradients: bool) -> Needs:
        """The weights alone."""
        del gradients
        return "weights"

    def decide(
        self,
        measurement: Measurement,
        constraints: Constraints,
        *,
        multiple: int,
        progress: Progress,
    ) -> Decision:
        """Find each layer's own rank and scale all of them to the budget."""
        found = {}
        for name, layer in measurement.candidates.layers.items():
            energies = measurement.decompositions.get(name, self.recipe).decomposition.energies
            found[name] = analytic_rank(
                energies.sqrt().cpu().numpy(), max(layer.folded or layer.shape)
            )
        ranks = scaled(measurement.candidates.layers, found, constraints, multiple=multiple)
        return decided(measurement, ranks, self.recipe, progress=progress)


def analytic_rank(values: Floats, columns: int) -> int:
    """Return the rank of a matrix [L, M] by empirical variational Bayes.

    Args:
        values: Its L singular values, largest first.
        columns: The larger side M.
    """
    if not values.any():
        return 0
    threshold = threshold_of(len(values) / columns)
    noise = noise_variance(values, columns)
    return int((values**2 > columns * noise * threshold).sum())


@lru_cache(maxsize=1024)
def threshold_of(alpha: float) -> float:
    """Return x̲ at the aspect ratio α = L/M in (0, 1]."""
    return (1 + _tau_below(alpha)) * (1 + alpha / _tau_below(alpha))


def noise_variance(values: Floats, columns: int) -> float:
    """Return the noise variance s² that minimises the free energy of a matrix [L, M].

    Args:
        values: Its L singular values, largest first, not all zero.
        columns: The larger side M.
    """
    from scipy.optimize import minimize_scalar

    side = len(values)
    alpha = side / columns
    squares = values**2 / columns
    ceiling = min(max(int(np.ceil(side / (1 + alpha))) - 1, 0), side - 1)
    high = float(squares.mean())
    low = max(
        float(squares[ceiling]) / threshold_of(alpha), float(squares[ceiling:].mean()), 1e-12 * high
    )
    low = min(low, high)
    # The free energy has several valleys: a scan finds the deepest, a search its floor.
    grid = np.geomspace(low, high, GRID)
    best = int(np.argmin([_free_energy(squares / noise, alpha) for noise in grid]))
    bounds = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)]))
    if bounds[0] >= bounds[1]:
        return bounds[0]
    found = minimize_scalar(
        lambda noise: _free_energy(squares / noise, alpha), bounds=bounds, method="bounded"
    )
    return float(found.x)


def scaled(
    layers: Mapping[str, Candidate],
    ranks: Mapping[str, int],
    constraints: Constraints,
    *,
    multiple: int = 1,
) -> dict[str, int]:
    """Return the ranks, all scaled by the largest common factor in (0, 1] that fits.

    Args:
        layers: The candidates by name.
        ranks: Wanted rank of each.
        constraints: What the layers may cost together.
        multiple: Ranks are multiples of this.
    """

    def at(factor: float) -> dict[str, int]:
        return {
            name: _allowed(layer, ranks[name] * factor, constraints, multiple)
            for name, layer in layers.items()
        }

    if constraints.hold(at(1.0)):
        return at(1.0)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if constraints.hold(at(middle)) else (low, middle)
    return at(low)


def _allowed(layer: Candidate, rank: float, constraints: Constraints, multiple: int) -> int:
    """Return the largest option that is not above a rank; dense above break-even."""
    choices = options(layer, np.zeros(layer.full_rank + 1), constraints, multiple=multiple).ranks
    if int(rank) > layer.break_even_rank:
        return layer.full_rank
    return int(choices[max(int(np.searchsorted(choices, int(rank), "right")) - 1, 0)])


@lru_cache(maxsize=1024)
def _tau_below(alpha: float) -> float:
    """Return τ̲, about 2.5129 √α."""
    from scipy.optimize import brentq

    def phi(z: float) -> float:
        return float(np.log1p(z)) / z - 0.5

    root = alpha**0.5
    return float(brentq(lambda tau: phi(tau) + phi(tau / alpha), 0.5 * root, 10 * root))


def _free_energy(x: Floats, alpha: float) -> float:
    """Return Σ ψ(x), x = γ²/(M s²), up to a constant."""
    x = np.maximum(x, 1e-300)
    energy = float((x - np.log(x)).sum())
    signal = x[x > threshold_of(alpha)]
    shifted = signal - (1 + alpha)
    tau = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0))) / 2
    return energy + float((np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau).sum())


METHODS.register(VariationalBayes.name)(VariationalBayes())
