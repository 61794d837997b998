"""What ranks cost, and how much of it may be spent: the common form of every budget (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.layers.candidates import Candidate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Constraint:
    """One cost that the layers share, and the most that may be spent.

    Args:
        name: The budget as written, for messages.
        costs: Cost of each layer at each rank 0…k, [k + 1]; at k, its full rank, it is dense. What
            lies between break-even and k is not read.
        limit: Most that all layers may cost together.
        fixed: What the rest of the model costs, whatever the ranks.
        dense: What the dense model costs in all.
    """

    name: str
    costs: Mapping[str, Floats]
    limit: float
    fixed: float = 0.0
    dense: float = 0.0


@dataclass(frozen=True)
class Constraints:
    """All costs of an allocation: what every method keeps to.

    Args:
        members: At least one.
    """

    members: tuple[Constraint, ...]

    @property
    def limits(self) -> Floats:
        """The limits [c]."""
        return np.array([member.limit for member in self.members])

    def of(self, layer: str) -> Floats:
        """Return the costs of one layer at each of its ranks, [c, k + 1]."""
        return np.stack([member.costs[layer] for member in self.members])

    def cost(self, layer: str, rank: int) -> Floats:
        """Return the costs [c] of one layer at one rank."""
        return np.array([member.costs[layer][rank] for member in self.members])

    def spent(self, ranks: Mapping[str, int]) -> Floats:
        """Return the costs [c] of all layers at these ranks."""
        total: Floats = np.sum([self.cost(name, rank) for name, rank in ranks.items()], axis=0)
        return total

    def hold(self, ranks: Mapping[str, int]) -> bool:
        """Return whether the layers keep to every limit."""
        return bool((self.spent(ranks) <= self.limits).all())


def weights_within(layers: Mapping[str, Candidate], limit: float) -> Constraints:
    """Return the one constraint that the layers keep at most so many weights together."""
    per_weight = dict.fromkeys(layers, 1.0)
    return Constraints((Constraint("weights", costs_of_weights(layers, per_weight), limit),))


def costs_of_weights(
    layers: Mapping[str, Candidate],
    per_weight: Mapping[str, float],
    per_rank: Mapping[str, float] | None = None,
) -> dict[str, Floats]:
    """Return the cost of each layer at each rank where every weight kept costs the same.

    Args:
        layers: The layers by name.
        per_weight: Cost of one weight of each layer.
        per_rank: Weights that each rank counts for; None counts those that it has.
    """
    costs = {}
    for name, layer in layers.items():
        each = layer.rank_cost if per_rank is None else per_rank[name]
        weights: Floats = np.arange(layer.full_rank + 1, dtype=np.float64) * each
        weights[layer.break_even_rank + 1 :] = float(layer.parameters)
        costs[name] = weights * per_weight[name]
    return costs
