"""Sharing a budget of weights between layers (pure).

Each layer has one option per rank up to break-even, costing r·(m + n) and losing the tail of its
energies, and one dense option, costing m·n and losing nothing. Crossing break-even is a cliff, so
this is a multiple-choice knapsack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.layers.candidates import Candidate
from compressor.registry import Registry

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """What one layer may become, the cheapest first.

    Args:
        ranks: Rank of each option; the last is the full rank, meaning dense.
        costs: Weights kept by each.
        losses: What each loses; decreasing, 0 at the end.
    """

    ranks: NDArray[np.int64]
    costs: Floats
    losses: Floats


def options(layer: Candidate, tail: Floats, *, multiple: int = 1) -> Options:
    """Return the options of one layer.

    Args:
        layer: The layer.
        tail: Loss at each rank 0…k, [k + 1].
        multiple: Ranks are multiples of this; a layer with none below break-even stays dense.
    """
    ranks = np.arange(multiple, layer.break_even_rank + 1, multiple)
    costs = ranks * float(sum(layer.shape))
    return Options(
        ranks=np.append(ranks, layer.full_rank),
        costs=np.append(costs, float(layer.parameters)),
        losses=np.append(tail[ranks], 0.0),
    )


Allocator = Callable[[Mapping[str, Options], float], dict[str, int]]
"""From each layer's options and the affordable weights to each layer's rank."""

ALLOCATORS: Registry[Allocator] = Registry("allocation", group="allocations")


@ALLOCATORS.register("uniform")
def uniform(layers: Mapping[str, Options], weights: float) -> dict[str, int]:
    """Give every layer the same share of its own weights, rounding down.

    Layers whose smallest option is above the share take that option, and the rest share less.
    """
    low, high = 0.0, 1.0
    best = {name: int(option.ranks[0]) for name, option in layers.items()}
    if sum(option.costs[-1] for option in layers.values()) <= weights:
        return {name: int(option.ranks[-1]) for name, option in layers.items()}
    for _ in range(50):
        share = (low + high) / 2
        chosen = {
            name: _largest_within(option, share * option.costs[-1])
            for name, option in layers.items()
        }
        if sum(layers[name].costs[index] for name, index in chosen.items()) <= weights:
            low = share
            best = {name: int(layers[name].ranks[index]) for name, index in chosen.items()}
        else:
            high = share
    return best


@ALLOCATORS.register("energy")
def energy_threshold(layers: Mapping[str, Options], weights: float) -> dict[str, int]:
    """Cut every layer at the same share of its own energy lost.

    The loss at rank 0 is taken as 1, so losses must be relative to the layer's energy.
    """
    low, high = 0.0, 1.0
    best = {name: int(option.ranks[0]) for name, option in layers.items()}
    for _ in range(60):
        lost = (low + high) / 2
        chosen = {name: _cheapest_within(option, lost) for name, option in layers.items()}
        if sum(layers[name].costs[index] for name, index in chosen.items()) <= weights:
            high = lost
            best = {name: int(layers[name].ranks[index]) for name, index in chosen.items()}
        else:
            low = lost
    return best


@ALLOCATORS.register("knapsack")
def knapsack(layers: Mapping[str, Options], weights: float) -> dict[str, int]:
    """Minimise the summed losses: Lagrangian bisection, then greedy steps to the budget.

    At a price λ per weight every layer takes its own best option; bisection finds the least λ at
    which the budget holds (Shoham & Gersho, IEEE Trans. ASSP 36, 1988). That is optimal on the
    lower convex hulls, but a layer's step there may be a cliff. So the allocations on both sides of
    the budget are brought to it, one by upgrades that still fit, the other by the cheapest
    downgrades first, and the better is taken.
    """
    names = list(layers)
    if sum(option.costs[-1] for option in layers.values()) <= weights:
        return {name: int(layers[name].ranks[-1]) for name in names}
    chosen = dict.fromkeys(names, 0)
    low, high = 0.0, max((_steepest(option) for option in layers.values()), default=0.0)
    free = _at_price(layers, low)  # what costs no loss at all: matrices of lower rank
    if _cost(layers, free) <= weights:
        high, chosen = low, free
    above = free
    for _ in range(200):
        if high - low <= 1e-14 * high:
            break
        price = (low + high) / 2 if low == 0 or high / low < 4 else float(np.sqrt(low * high))
        trial = _at_price(layers, price)
        if _cost(layers, trial) <= weights:
            high, chosen = price, trial
        else:
            low, above = price, trial
    ends = [
        {name: int(layers[name].ranks[index]) for name, index in end.items()}
        for end in (
            _fill(layers, chosen, weights),
            _fill(layers, _trim(layers, above, weights), weights),
        )
    ]
    return min(ends, key=lambda ranks: total_loss(layers, ranks))


@ALLOCATORS.register("exact")
def exact(layers: Mapping[str, Options], weights: float) -> dict[str, int]:
    """Minimise the summed losses exactly, as a mixed-integer program solved by SciPy's HiGHS.

    Raises:
        RuntimeError: If the solver ends without an optimum within the budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag, csr_array, vstack

    names = list(layers)
    losses = np.concatenate([layers[name].losses for name in names])
    costs = np.concatenate([layers[name].costs for name in names])
    scale = float(losses.max()) or 1.0
    one_each = block_diag([np.ones((1, len(layers[name].ranks))) for name in names])
    result = milp(
        losses / scale,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(vstack([csr_array(costs[None, :])]), -np.inf, weights),
        ],
        integrality=np.ones(len(losses)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-9},
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no allocation: {result.message}")
    ranks: dict[str, int] = {}
    start = 0
    for name in names:
        stop = start + len(layers[name].ranks)
        ranks[name] = int(layers[name].ranks[int(np.argmax(result.x[start:stop]))])
        start = stop
    kept = sum(
        option.costs[int(np.searchsorted(option.ranks, ranks[name]))]
        for name, option in layers.items()
    )
    if kept > weights:
        # The solver holds constraints to within a tolerance, which many weights may exceed by one.
        return exact(layers, weights - (kept - weights))
    return ranks


def total_loss(layers: Mapping[str, Options], ranks: Mapping[str, int]) -> float:
    """Return the summed loss of an allocation."""
    return sum(
        float(option.losses[int(np.searchsorted(option.ranks, ranks[name]))])
        for name, option in layers.items()
    )


def _at_price(layers: Mapping[str, Options], price: float) -> dict[str, int]:
    """Return each layer's best option index at a price per weight."""
    return {
        name: int(np.argmin(option.losses + price * option.costs))
        for name, option in layers.items()
    }


def _steepest(option: Options) -> float:
    """Return the price per weight above which a layer takes its cheapest option."""
    if len(option.costs) == 1:
        return 0.0
    return float(((option.losses[0] - option.losses[1:]) / np.diff(option.costs).cumsum()).max())


def _cost(layers: Mapping[str, Options], chosen: Mapping[str, int]) -> float:
    return float(sum(layers[name].costs[index] for name, index in chosen.items()))


def _fill(
    layers: Mapping[str, Options], chosen: Mapping[str, int], weights: float
) -> dict[str, int]:
    """Spend what is left on the upgrade with the best gain per weight that still fits."""
    chosen = dict(chosen)
    left = weights - _cost(layers, chosen)
    while True:
        best: tuple[float, str, int] | None = None
        for name, option in layers.items():
            at = chosen[name]
            costs = option.costs[at + 1 :] - option.costs[at]
            gains = option.losses[at] - option.losses[at + 1 :]
            fits = (costs <= left) & (gains > 0)
            if not fits.any():
                continue
            rates = np.where(fits, gains / np.maximum(costs, 1e-300), -1.0)
            index = int(np.argmax(rates))
            if best is None or rates[index] > best[0]:
                best = (float(rates[index]), name, at + 1 + index)
        if best is None:
            return chosen
        _, name, index = best
        left -= float(layers[name].costs[index] - layers[name].costs[chosen[name]])
        chosen[name] = index


def _trim(
    layers: Mapping[str, Options], chosen: Mapping[str, int], weights: float
) -> dict[str, int]:
    """Free what is above the budget by the downgrades with the least loss per weight needed."""
    chosen = dict(chosen)
    while (over := _cost(layers, chosen) - weights) > 0:
        best: tuple[float, str, int] | None = None
        for name, option in layers.items():
            at = chosen[name]
            if at == 0:
                continue
            freed = np.minimum(option.costs[at] - option.costs[:at], over)
            rates = (option.losses[:at] - option.losses[at]) / freed
            index = int(np.argmin(rates))
            if best is None or rates[index] < best[0]:
                best = (float(rates[index]), name, index)
        if best is None:
            break  # everything is at its cheapest
        chosen[best[1]] = best[2]
    return chosen


def _largest_within(option: Options, cost: float) -> int:
    return max(int(np.searchsorted(option.costs, cost + 1e-9, side="right")) - 1, 0)


def _cheapest_within(option: Options, loss: float) -> int:
    return int(np.argmax(option.losses <= loss + 1e-15))
