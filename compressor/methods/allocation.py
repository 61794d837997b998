"""Sharing budgets between layers (pure).

Each layer has one option per rank up to break-even, keeping r·(m + n) weights and losing the tail
of its energies, and one dense option, keeping m·n and losing nothing. Crossing break-even is a
cliff, so this is a multiple-choice knapsack; with several budgets, a multi-dimensional one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.layers.candidates import Candidate
from compressor.methods.constraints import Constraints, Floats
from compressor.registry import Registry


@dataclass(frozen=True)
class Options:
    """What one layer may become, the fewest weights first.

    Args:
        ranks: Rank of each of the o options; the last is the full rank, meaning dense.
        weights: Weights kept by each, ascending.
        costs: Cost of each under each of the c constraints, [c, o].
        losses: What each loses; decreasing, 0 at the end.
    """

    ranks: NDArray[np.int64]
    weights: Floats
    costs: Floats
    losses: Floats


def options(
    layer: Candidate, tail: Floats, constraints: Constraints | None = None, *, multiple: int = 1
) -> Options:
    """Return the options of one layer.

    A rank that costs no less than the dense layer under every constraint is no option: it would
    lose something for nothing.

    Args:
        layer: The layer.
        tail: Loss at each rank 0…k, [k + 1].
        constraints: What ranks cost; None counts weights.
        multiple: Ranks are multiples of this; a layer with none below break-even stays dense.
    """
    ranks = np.arange(multiple, layer.break_even_rank + 1, multiple)
    every = np.append(ranks, layer.full_rank)
    weights = np.append(ranks * float(layer.rank_cost), float(layer.parameters))
    costs = weights[None] if constraints is None else constraints.of(layer.name)[:, every]
    worth = np.append((costs[:, :-1] < costs[:, -1:]).any(0), True)
    return Options(
        ranks=every[worth],
        weights=weights[worth],
        costs=costs[:, worth],
        losses=np.append(tail[ranks], 0.0)[worth],
    )


Allocator = Callable[[Mapping[str, Options], "Floats | float"], dict[str, int]]
"""From each layer's options and the limits [c] of what they cost to each layer's rank.

Where no choice keeps to the limits, what comes back does not either.
"""

ALLOCATORS: Registry[Allocator] = Registry("allocation", group="allocations")


@ALLOCATORS.register("uniform")
def uniform(layers: Mapping[str, Options], limits: Floats | float) -> dict[str, int]:
    """Give every layer the same share of its own weights, rounding down.

    Layers whose smallest option is above the share take that option, and the rest share less.
    """

    def at(share: float) -> dict[str, int]:
        return {
            name: _largest_within(option, share * option.weights[-1])
            for name, option in layers.items()
        }

    return _last_within(layers, limits, at, steps=50)


@ALLOCATORS.register("energy")
def energy_threshold(layers: Mapping[str, Options], limits: Floats | float) -> dict[str, int]:
    """Cut every layer at the same share of its own energy lost.

    The loss at rank 0 is taken as 1, so losses must be relative to the layer's energy.
    """

    def at(kept: float) -> dict[str, int]:
        return {name: _cheapest_within(option, 1 - kept) for name, option in layers.items()}

    return _last_within(layers, limits, at, steps=60)


@ALLOCATORS.register("knapsack")
def knapsack(layers: Mapping[str, Options], limits: Floats | float) -> dict[str, int]:
    """Minimise the summed losses: Lagrangian prices, then greedy steps to the limits.

    At a price λ per unit of cost every layer takes its own best option; bisection finds the least λ
    at which one budget holds (Shoham & Gersho, IEEE Trans. ASSP 36, 1988). That is optimal on the
    lower convex hulls, but a layer's step there may be a cliff. So the allocations on both sides of
    the budget are brought to it, one by upgrades that still fit, the other by the cheapest
    downgrades first, and the better is taken.

    Of several budgets often one alone binds: where the allocation for one keeps to all others it is
    taken. Otherwise the prices of all are those of the linear relaxation, and the greedy steps are
    the same; should they not reach all limits, `exact` does.
    """
    bounds = np.atleast_1d(np.asarray(limits, dtype=np.float64))
    if _within(_cost(layers, _dense(layers)), bounds):
        return _ranks(layers, _dense(layers))
    for row, limit in enumerate(bounds):
        alone = {
            name: Options(option.ranks, option.weights, option.costs[row : row + 1], option.losses)
            for name, option in layers.items()
        }
        found = _for_one(alone, np.array([limit]))
        if len(bounds) == 1 or _within(_cost(layers, found), bounds):
            return _ranks(layers, found)
    found = _for_several(layers, bounds)
    if not _within(_cost(layers, found), bounds):
        return exact(layers, bounds)
    return _ranks(layers, found)


def _for_one(layers: Mapping[str, Options], bounds: Floats) -> dict[str, int]:
    """Return the option of each layer under one budget, by its index."""
    chosen = dict.fromkeys(layers, 0)
    low, high = 0.0, max((_steepest(option) for option in layers.values()), default=0.0)
    free = _at_prices(layers, np.zeros(1))  # what costs no loss at all: matrices of lower rank
    if _within(_cost(layers, free), bounds):
        high, chosen = low, free
    above = free
    for _ in range(200):
        if high - low <= 1e-14 * high:
            break
        price = (low + high) / 2 if low == 0 or high / low < 4 else float(np.sqrt(low * high))
        trial = _at_prices(layers, np.array([price]))
        if _within(_cost(layers, trial), bounds):
            high, chosen = price, trial
        else:
            low, above = price, trial
    scale = np.ones(1)
    ends = (
        _fill(layers, chosen, bounds, scale),
        _fill(layers, _trim(layers, above, bounds, scale), bounds, scale),
    )
    return min(ends, key=lambda end: total_loss(layers, _ranks(layers, end)))


def _for_several(layers: Mapping[str, Options], bounds: Floats) -> dict[str, int]:
    """Return the option of each layer under several budgets, by its index."""
    prices = _relaxed_prices(layers, bounds)
    # A budget that does not bind has no price, but what a step costs of it should still count.
    scale = prices + 1e-6 * max(float((prices * bounds).max()), 1e-300) / np.maximum(bounds, 1e-300)
    start = _at_prices(layers, prices)
    trimmed = _trim(layers, start, bounds, 1 / np.maximum(bounds, 1e-300))
    return _fill(layers, trimmed, bounds, scale)


def _relaxed_prices(layers: Mapping[str, Options], bounds: Floats) -> Floats:
    """Return the price of each budget in the linear relaxation, from HiGHS's dual solution."""
    from scipy.optimize import linprog

    losses, costs, one_each = _stacked(layers)
    scale = float(losses.max()) or 1.0
    sizes = np.maximum(np.abs(bounds), 1e-300)
    solved = linprog(
        losses / scale,
        A_ub=costs / sizes[:, None],
        b_ub=bounds / sizes,
        A_eq=one_each,
        b_eq=np.ones(len(layers)),
        bounds=(0, 1),
        method="highs",
    )
    if solved.x is None:
        return 1 / sizes
    prices: Floats = np.maximum(-solved.ineqlin.marginals, 0) * scale / sizes
    return prices


@ALLOCATORS.register("exact")
def exact(layers: Mapping[str, Options], limits: Floats | float) -> dict[str, int]:
    """Minimise the summed losses exactly, as a mixed-integer program solved by SciPy's HiGHS.

    Raises:
        RuntimeError: If the solver ends without an optimum within the limits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    bounds = np.atleast_1d(np.asarray(limits, dtype=np.float64))
    losses, costs, one_each = _stacked(layers)
    scale = float(losses.max()) or 1.0
    result = milp(
        losses / scale,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(vstack([csr_array(costs)]), -np.inf, bounds),
        ],
        integrality=np.ones(len(losses)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-9},
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no allocation: {result.message}")
    chosen = _unstacked(layers, result.x)
    over = _cost(layers, chosen) - bounds
    if (over > 0).any():
        # The solver holds constraints to within a tolerance, which many weights may exceed by one.
        return exact(layers, bounds - np.maximum(over, 0))
    return _ranks(layers, chosen)


def nearest_limits(layers: Mapping[str, Options], limits: Floats) -> Floats:
    """Return limits that can be kept, raised where need be by the least summed ratio.

    minimise Σ_c s_c subject to Σ_l cost_c ≤ limit_c (1 + s_c), s ≥ 0; by HiGHS. Limits that can be
    kept together come back as they are.

    Args:
        layers: Each layer's options.
        limits: Limits [c], above 0.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_array, csr_array, diags_array

    _, costs, one_each = _stacked(layers)
    shares, slacks = costs / limits[:, None], len(limits)
    options_count = costs.shape[1]
    result = milp(
        np.concatenate([np.zeros(options_count), np.ones(slacks)]),
        constraints=[
            LinearConstraint(block_array([[one_each, csr_array((len(layers), slacks))]]), 1, 1),
            LinearConstraint(
                block_array([[csr_array(shares), diags_array(-np.ones(slacks))]]), -np.inf, 1
            ),
        ],
        integrality=np.concatenate([np.ones(options_count), np.zeros(slacks)]),
        bounds=Bounds(0, np.concatenate([np.ones(options_count), np.full(slacks, np.inf)])),
        options={"mip_rel_gap": 1e-9},
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS found no allocation: {result.message}")
    chosen = _unstacked(layers, result.x[:options_count])
    return np.maximum(limits, _cost(layers, chosen))


def _stacked(layers: Mapping[str, Options]) -> tuple[Floats, Floats, Any]:
    """Return losses [o], costs [c, o] of all options, and which layer [l, o] each belongs to."""
    from scipy.sparse import block_diag

    losses = np.concatenate([option.losses for option in layers.values()])
    costs = np.concatenate([option.costs for option in layers.values()], axis=1)
    one_each = block_diag(
        [np.ones((1, len(option.ranks))) for option in layers.values()], format="csr"
    )
    return losses, costs, one_each


def _unstacked(layers: Mapping[str, Options], solution: Floats) -> dict[str, int]:
    """Return each layer's chosen option from a solution over all options."""
    chosen = {}
    start = 0
    for name, option in layers.items():
        stop = start + len(option.ranks)
        chosen[name] = int(np.argmax(solution[start:stop]))
        start = stop
    return chosen


def total_loss(layers: Mapping[str, Options], ranks: Mapping[str, int]) -> float:
    """Return the summed loss of an allocation."""
    return sum(
        float(option.losses[int(np.searchsorted(option.ranks, ranks[name]))])
        for name, option in layers.items()
    )


def _last_within(
    layers: Mapping[str, Options],
    limits: Floats | float,
    at: Callable[[float], dict[str, int]],
    *,
    steps: int,
) -> dict[str, int]:
    """Return the ranks at the largest part in [0, 1] that keeps to the limits, by bisection.

    Args:
        layers: Each layer's options.
        limits: Limits [c].
        at: Each layer's option at a part; the larger the part, the more is kept.
        steps: Halvings.
    """
    bounds = np.atleast_1d(np.asarray(limits, dtype=np.float64))
    if _within(_cost(layers, _dense(layers)), bounds):
        return _ranks(layers, _dense(layers))
    low, high = 0.0, 1.0
    best = dict.fromkeys(layers, 0)
    for _ in range(steps):
        middle = (low + high) / 2
        chosen = at(middle)
        if _within(_cost(layers, chosen), bounds):
            low, best = middle, chosen
        else:
            high = middle
    return _ranks(layers, best)


def _at_prices(layers: Mapping[str, Options], prices: Floats) -> dict[str, int]:
    """Return each layer's best option index at prices [c] per unit of each cost."""
    return {
        name: int(np.argmin(option.losses + (prices[:, None] * option.costs).sum(0)))
        for name, option in layers.items()
    }


def _steepest(option: Options) -> float:
    """Return the price per unit of the one cost above which a layer takes its cheapest option."""
    costs = option.costs[0]
    if len(costs) == 1:
        return 0.0
    rises = np.diff(costs).cumsum()
    dearer = rises > 0
    slopes = (option.losses[0] - option.losses[1:])[dearer] / rises[dearer]
    return float(slopes.max(initial=0.0))


def _cost(layers: Mapping[str, Options], chosen: Mapping[str, int]) -> Floats:
    total: Floats = np.sum([layers[name].costs[:, at] for name, at in chosen.items()], axis=0)
    return total


def _within(cost: Floats, bounds: Floats) -> bool:
    return bool((cost <= bounds).all())


def _dense(layers: Mapping[str, Options]) -> dict[str, int]:
    return {name: len(option.ranks) - 1 for name, option in layers.items()}


def _ranks(layers: Mapping[str, Options], chosen: Mapping[str, int]) -> dict[str, int]:
    return {name: int(layers[name].ranks[index]) for name, index in chosen.items()}


def _fill(
    layers: Mapping[str, Options], chosen: Mapping[str, int], bounds: Floats, scale: Floats
) -> dict[str, int]:
    """Spend what is left on the upgrade with the best gain per cost that still fits.

    Args:
        layers: Each layer's options.
        chosen: Where to start, by option index.
        bounds: Limits [c].
        scale: What a unit of each cost counts for, [c].
    """
    chosen = dict(chosen)
    left = bounds - _cost(layers, chosen)
    while True:
        best: tuple[float, str, int] | None = None
        for name, option in layers.items():
            at = chosen[name]
            costs = option.costs[:, at + 1 :] - option.costs[:, at : at + 1]
            gains = option.losses[at] - option.losses[at + 1 :]
            fits = (costs <= np.maximum(left, 0)[:, None]).all(0) & (gains > 0)
            if not fits.any():
                continue
            spent = (scale[:, None] * costs).sum(0)
            rates = np.where(fits, gains / np.maximum(spent, 1e-300), -1.0)
            index = int(np.argmax(rates))
            if best is None or rates[index] > best[0]:
                best = (float(rates[index]), name, at + 1 + index)
        if best is None:
            return chosen
        _, name, index = best
        left -= layers[name].costs[:, index] - layers[name].costs[:, chosen[name]]
        chosen[name] = index


def _trim(
    layers: Mapping[str, Options], chosen: Mapping[str, int], bounds: Floats, scale: Floats
) -> dict[str, int]:
    """Free what is above the limits by the changes with the least loss per cost needed.

    Each step lowers the summed excess over the limits; what no step lowers is left.
    """
    chosen = dict(chosen)
    while ((over := _cost(layers, chosen) - bounds) > 0).any():
        excess = float((scale * np.maximum(over, 0)).sum())
        best: tuple[float, str, int] | None = None
        for name, option in layers.items():
            at = chosen[name]
            drops = option.costs[:, at : at + 1] - option.costs
            after = (scale[:, None] * np.maximum(over[:, None] - drops, 0)).sum(0)
            freed = excess - after
            useful = freed > 1e-12 * excess
            if not useful.any():
                continue
            lost = option.losses - option.losses[at]
            rates = np.where(useful, lost / np.where(useful, freed, 1.0), np.inf)
            index = int(np.argmin(rates))
            if best is None or rates[index] < best[0]:
                best = (float(rates[index]), name, index)
        if best is None:
            break  # nothing lowers the excess any further
        chosen[best[1]] = best[2]
    return chosen


def _largest_within(option: Options, weights: float) -> int:
    return max(int(np.searchsorted(option.weights, weights + 1e-9, side="right")) - 1, 0)


def _cheapest_within(option: Options, loss: float) -> int:
    return int(np.argmax(option.losses <= loss + 1e-15))
