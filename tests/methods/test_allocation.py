"""Allocators against exhaustive search, and never above the budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compressor.layers.candidates import Candidate
from compressor.methods.allocation import (
    ALLOCATORS,
    Options,
    exact,
    knapsack,
    nearest_limits,
    options,
    total_loss,
)
from compressor.methods.constraints import Constraint, Constraints


def layer(name, m, n):
    return Candidate(name, "linear", (m, n), True, name, 1.0)


def tail_of(energies):
    return np.append(np.cumsum(np.sort(energies))[::-1], 0.0)


@st.composite
def problems(draw, layers=4, side=9):
    """Strategy of (options by layer, weights): reachable budgets, some energies zero or tied."""
    made = {}
    multiple = draw(st.sampled_from([1, 1, 2, 3]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for index in range(draw(st.integers(1, layers))):
        m, n = draw(st.integers(1, side)), draw(st.integers(2, side))
        energies = generator.exponential(size=min(m, n)) ** 3
        energies[draw(st.integers(1, min(m, n))) :] = 0.0
        made[str(index)] = options(layer(str(index), m, n), tail_of(energies), multiple=multiple)
    least = sum(option.weights[0] for option in made.values())
    most = sum(option.weights[-1] for option in made.values())
    return made, float(np.floor(least + draw(st.floats(0, 1)) * (most - least)))


def cost(layers, ranks):
    return sum(
        option.weights[list(option.ranks).index(ranks[name])] for name, option in layers.items()
    )


def exhaustive(layers, weights):
    """Return the least total loss of all combinations within the budget."""
    best = np.inf
    for choice in itertools.product(*(range(len(option.ranks)) for option in layers.values())):
        pairs = list(zip(layers.values(), choice, strict=True))
        if sum(option.weights[index] for option, index in pairs) <= weights:
            best = min(best, sum(option.losses[index] for option, index in pairs))
    return best


@pytest.mark.parametrize("name", ALLOCATORS.names())
@given(problem=problems())
@settings(max_examples=40, deadline=None)
def test_never_above_the_budget(name, problem):
    layers, weights = problem
    ranks = ALLOCATORS.get(name)(layers, weights)
    assert ranks.keys() == layers.keys()
    assert cost(layers, ranks) <= weights


@given(problem=problems(layers=3))
@settings(max_examples=40, deadline=None)
def test_exact_is_the_least_of_all(problem):
    layers, weights = problem
    best = exhaustive(layers, weights)
    scale = sum(option.losses[0] for option in layers.values())
    assert total_loss(layers, exact(layers, weights)) == pytest.approx(best, abs=1e-7 * scale)


@given(problem=problems(layers=3))
@settings(max_examples=60, deadline=None)
def test_knapsack_is_never_below_the_optimum(problem):
    layers, weights = problem
    found = total_loss(layers, knapsack(layers, weights))
    scale = sum(option.losses[0] for option in layers.values())
    assert found >= exhaustive(layers, weights) - 1e-12 * scale


@given(st.integers(0, 2**32 - 1), st.floats(0.15, 0.95))
@settings(max_examples=15, deadline=None)
def test_knapsack_is_close_to_exact_on_networks(seed, share):
    generator = np.random.default_rng(seed)
    layers = {}
    for index in range(12):
        m, n = (int(side) for side in generator.integers(16, 65, size=2))
        decay = generator.uniform(0.3, 2)
        energies = generator.exponential() * np.arange(1, min(m, n) + 1.0) ** -decay
        layers[str(index)] = options(layer(str(index), m, n), tail_of(energies))
    weights = np.floor(share * sum(option.weights[-1] for option in layers.values()))
    best, found = exact(layers, weights), knapsack(layers, weights)
    assert cost(layers, best) <= weights
    scale = sum(float(option.losses[0]) for option in layers.values())
    assert total_loss(layers, best) <= total_loss(layers, found) + 1e-7 * scale
    assert total_loss(layers, found) <= total_loss(layers, best) * 1.1 + 0.02 * scale


@pytest.mark.parametrize("name", ALLOCATORS.names())
def test_everything_stays_dense_where_it_may(name):
    layers = {str(i): options(layer(str(i), 8, 8), tail_of(np.arange(1.0, 9))) for i in range(3)}
    ranks = ALLOCATORS.get(name)(layers, 3 * 64.0)
    assert ranks == dict.fromkeys(layers, 8)


def test_matrices_of_lower_rank_are_not_kept_dense_above_the_budget():
    low = options(layer("low", 8, 8), tail_of(np.array([1.0, 1, 0, 0, 0, 0, 0, 0])))
    found = knapsack({"low": low}, 40.0)
    assert found == {"low": 2}  # 2·16 = 32 loses nothing; dense would be 64


def test_options_of_a_layer():
    made = options(layer("a", 6, 12), tail_of(np.arange(1.0, 7)))
    assert made.ranks.tolist() == [1, 2, 3, 6]  # break-even below 72/18 = 4
    assert made.weights.tolist() == [18, 36, 54, 72]
    assert made.costs.tolist() == [[18, 36, 54, 72]]
    assert made.losses.tolist() == [15, 10, 6, 0]


def test_rank_multiples():
    made = options(layer("a", 64, 64), tail_of(np.ones(64)), multiple=8)
    assert made.ranks.tolist() == [8, 16, 24, 64]
    assert options(layer("a", 64, 64), tail_of(np.ones(64)), multiple=32).ranks.tolist() == [64]
    assert options(layer("a", 1, 9), tail_of(np.ones(1))).ranks.tolist() == [1]


def test_uniform_gives_the_same_share():
    shapes = {"a": (40, 40), "b": (80, 20), "c": (100, 100)}
    layers = {n: options(layer(n, *s), tail_of(np.ones(min(s)))) for n, s in shapes.items()}
    total = sum(m * n for m, n in shapes.values())
    ranks = ALLOCATORS.get("uniform")(layers, 0.5 * total)
    for name, (m, n) in shapes.items():
        assert 0.4 < ranks[name] * (m + n) / (m * n) <= 0.55


def test_uniform_does_not_look_at_losses_and_energy_does():
    flat, steep = tail_of(np.ones(40)) / 40, tail_of(0.5 ** np.arange(40.0)) / 2
    layers = {"flat": options(layer("flat", 40, 40), flat)}
    layers["steep"] = options(layer("steep", 40, 40), steep)
    uniform = ALLOCATORS.get("uniform")(layers, 1600.0)
    assert uniform["flat"] == uniform["steep"]
    energy = ALLOCATORS.get("energy")(layers, 1600.0)
    assert energy["steep"] < energy["flat"]
    # Both keep at least the same share of their own energy, which one rank less would not.
    lost = max(flat[energy["flat"]], steep[energy["steep"]])
    assert steep[energy["steep"] - 1] > lost


@given(problem=problems())
@settings(max_examples=20, deadline=None)
def test_more_weights_never_lose_more_exactly(problem):
    layers, weights = problem
    assume(weights + 10 <= sum(option.weights[-1] for option in layers.values()))
    scale = sum(option.losses[0] for option in layers.values())
    more = total_loss(layers, exact(layers, weights + 10))
    assert more <= total_loss(layers, exact(layers, weights)) + 1e-7 * scale


@st.composite
def joint_problems(draw, layers=3, side=8):
    """Strategy of (options by layer, limits [c]) that some choice keeps to; costs rise and fall."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.integers(2, 3))
    made, least = {}, np.zeros(kinds)
    for index in range(draw(st.integers(1, layers))):
        m, n = draw(st.integers(2, side)), draw(st.integers(2, side))
        plain = options(layer(str(index), m, n), tail_of(generator.exponential(size=min(m, n))))
        factors = generator.uniform(0.2, 3, kinds)[:, None]
        noise = generator.uniform(0.7, 1.3, (kinds, len(plain.ranks)))
        costs = plain.weights * factors * noise
        costs[0] = plain.weights
        made[str(index)] = Options(plain.ranks, plain.weights, costs, plain.losses)
        least += costs[:, generator.integers(len(plain.ranks))]
    return made, least * draw(st.floats(1.0, 1.3))


def joint_cost(layers, ranks):
    return sum(
        option.costs[:, list(option.ranks).index(ranks[name])] for name, option in layers.items()
    )


def jointly_exhaustive(layers, limits):
    best = np.inf
    for choice in itertools.product(*(range(len(option.ranks)) for option in layers.values())):
        pairs = list(zip(layers.values(), choice, strict=True))
        if (sum(option.costs[:, index] for option, index in pairs) <= limits).all():
            best = min(best, sum(option.losses[index] for option, index in pairs))
    return best


@given(problem=joint_problems())
@settings(max_examples=60, deadline=None)
def test_several_limits_are_kept_and_exact_is_the_least_of_all(problem):
    layers, limits = problem
    best = jointly_exhaustive(layers, limits)
    scale = sum(option.losses[0] for option in layers.values())
    solved = exact(layers, limits)
    assert (joint_cost(layers, solved) <= limits).all()
    assert total_loss(layers, solved) == pytest.approx(best, abs=1e-7 * scale)
    found = knapsack(layers, limits)
    assert (joint_cost(layers, found) <= limits).all()
    assert total_loss(layers, found) >= best - 1e-12 * scale


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.8), st.floats(0.2, 0.8))
@settings(max_examples=10, deadline=None)
def test_several_limits_on_networks_lose_little_over_exact(seed, first, second):
    generator = np.random.default_rng(seed)
    layers = {}
    for index in range(10):
        m, n = (int(side) for side in generator.integers(16, 65, size=2))
        energies = generator.exponential() * np.arange(1, min(m, n) + 1.0) ** -1.0
        plain = options(layer(str(index), m, n), tail_of(energies))
        costs = np.stack([plain.weights, plain.weights * generator.uniform(0.2, 5)])
        layers[str(index)] = Options(plain.ranks, plain.weights, costs, plain.losses)
    dense = sum(option.costs[:, -1] for option in layers.values())
    limits = dense * np.array([first, second])
    best, found = exact(layers, limits), knapsack(layers, limits)
    assert (joint_cost(layers, found) <= limits).all()
    scale = sum(float(option.losses[0]) for option in layers.values())
    assert total_loss(layers, found) <= total_loss(layers, best) * 1.1 + 0.02 * scale


@given(problem=joint_problems())
@settings(max_examples=30, deadline=None)
def test_nearest_limits(problem):
    layers, limits = problem
    assert nearest_limits(layers, limits) == pytest.approx(limits, rel=1e-6)
    tight = limits * 0.2
    raised = nearest_limits(layers, tight)
    assert (raised >= tight).all()
    assert jointly_exhaustive(layers, raised * (1 + 1e-9)) < np.inf


def test_ranks_that_cost_no_less_than_dense_are_no_options():
    square = layer("a", 8, 8)
    milliseconds = np.array([0.0, 5.0, 9.0, 11.0, 0, 0, 0, 0, 10.0])
    slow = Constraints((Constraint("latency", {"a": milliseconds}, 9.0),))
    assert options(square, tail_of(np.ones(8)), slow).ranks.tolist() == [1, 2, 8]
