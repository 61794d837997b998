"""EVBMF: ranks recovered from noise, the threshold's constants, scaling to a budget."""

import numpy as np
import pytest

from compressor.layers.candidates import Candidate
from compressor.methods.baselines.evbmf import (
    analytic_rank,
    noise_variance,
    scaled,
    threshold_of,
)
from compressor.methods.constraints import weights_within


def noisy(rows, columns, rank, *, noise, seed=0):
    generator = np.random.default_rng(seed)
    signal = generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, columns))
    return signal + noise * generator.standard_normal((rows, columns))


def rank_of(matrix):
    return analytic_rank(np.linalg.svd(matrix, compute_uv=False), max(matrix.shape))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shape", "rank"), [((60, 100), 5), ((100, 60), 5), ((80, 80), 12), ((30, 300), 8)]
)
def test_it_recovers_the_rank_under_noise(shape, rank, seed):
    assert rank_of(noisy(*shape, rank, noise=0.5, seed=seed)) == rank


@pytest.mark.parametrize("seed", range(3))
def test_noise_alone_has_no_rank_and_its_variance_is_found(seed):
    values = np.linalg.svd(noisy(100, 200, 1, noise=0.7, seed=seed), compute_uv=False)
    noise_only = np.linalg.svd(
        0.7 * np.random.default_rng(seed).standard_normal((100, 200)), compute_uv=False
    )
    assert analytic_rank(noise_only, 200) == 0
    assert noise_variance(noise_only, 200) == pytest.approx(0.49, rel=0.03)
    assert noise_variance(values, 200) == pytest.approx(0.49, rel=0.05)


def test_the_rank_does_not_depend_on_scale():
    matrix = noisy(40, 70, 6, noise=0.4)
    assert rank_of(matrix) == rank_of(1e-6 * matrix) == rank_of(1e6 * matrix) == 6


def test_matrices_without_noise_have_their_own_rank():
    assert rank_of(noisy(30, 40, 4, noise=0.0)) == 4
    assert rank_of(np.zeros((5, 9))) == 0
    assert rank_of(np.ones((1, 9))) in (0, 1)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
def test_the_threshold_is_near_its_published_approximation(alpha):
    tau = 2.5129 * alpha**0.5
    assert threshold_of(alpha) == pytest.approx((1 + tau) * (1 + alpha / tau), rel=0.02)
    assert threshold_of(alpha) > (1 + alpha**0.5) ** 2  # above the edge of pure noise


def test_square_matrices_meet_the_constant_exactly():
    assert threshold_of(1.0) == pytest.approx((1 + 2.51286) * (1 + 1 / 2.51286), abs=1e-5)


def layers_of(*shapes):
    return {
        f"l{index}": Candidate(f"l{index}", "linear", shape, True, f"l{index}", 1.0)
        for index, shape in enumerate(shapes)
    }


def cost(layers, ranks):
    return sum(layers[name].cost(rank) for name, rank in ranks.items())


def test_ranks_within_the_budget_stay_as_found():
    layers = layers_of((40, 40), (40, 60))
    assert scaled(layers, {"l0": 7, "l1": 0}, weights_within(layers, 4000)) == {"l0": 7, "l1": 1}


def test_ranks_above_break_even_mean_dense():
    layers = layers_of((40, 40), (40, 60))
    assert scaled(layers, {"l0": 20, "l1": 3}, weights_within(layers, 4000)) == {"l0": 40, "l1": 3}


@pytest.mark.parametrize("multiple", [1, 4])
def test_larger_ranks_are_scaled_down_by_one_factor(multiple):
    layers = layers_of((100, 100), (100, 100), (100, 200))
    wanted = {"l0": 40, "l1": 20, "l2": 30}
    weights = 0.5 * cost(layers, wanted)
    ranks = scaled(layers, wanted, weights_within(layers, weights), multiple=multiple)
    assert cost(layers, ranks) <= weights
    factors = [
        (ranks[name] / wanted[name], (ranks[name] + multiple) / wanted[name]) for name in wanted
    ]
    assert max(low for low, _ in factors) <= min(high for _, high in factors) + 1e-9
    # The next larger factor breaks the budget: one more step of the layer that is next.
    step = min(wanted, key=lambda name: (ranks[name] + multiple) / wanted[name])
    assert cost(layers, {**ranks, step: ranks[step] + multiple}) > weights
