"""ZS-SVD: its scores against finite differences, its rule against a slow reading of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from compressor.layers.candidates import Candidate
from compressor.methods.baselines.zs_svd import ZeroSum, loss_changes, zero_sum
from compressor.methods.constraints import weights_within
from compressor.methods.metrics import known_loss
from compressor.stages import measure, plan


def candidate(name, rows, columns):
    return Candidate(name, "linear", (rows, columns), True, name, 1.0)


def layers_of(*shapes):
    return {f"l{index}": candidate(f"l{index}", *shape) for index, shape in enumerate(shapes)}


def kept_cost(layers, ranks):
    return sum(layers[name].cost(rank) for name, rank in ranks.items())


def test_scores_are_the_first_order_change_of_the_loss(net, batches):
    measurement = measure(net, batches, selection=batches[:1], method="zs-svd")
    inputs, labels = (torch.cat(part) for part in zip(*batches, strict=True))

    def loss():
        with torch.no_grad():
            return float(functional.cross_entropy(net(inputs), labels))

    for name in ("first", "third"):
        decomposition = measurement.decompositions.get(name, ZeroSum.recipe).decomposition
        found = loss_changes(decomposition, known_loss(measurement.layers[name]))
        weight = net.get_submodule(name).weight
        step = 1e-5
        for index in range(len(found)):
            component = torch.outer(decomposition.up[:, index], decomposition.down[index])
            with torch.no_grad():
                weight.sub_(step * component)
                ahead = loss()
                weight.add_(2 * step * component)
                behind = loss()
                weight.sub_(step * component)
            assert found[index] == pytest.approx((ahead - behind) / (2 * step), abs=1e-7, rel=1e-4)
        assert np.abs(found).max() > 1e-3
        assert (found > 0).any()
        assert (found < 0).any()


def test_a_method_run_end_to_end_meets_its_budget(net, batches):
    measurement = measure(net, batches, selection=batches[:1], method="zs-svd")
    made = plan(measurement, "layers=40%", method="zs-svd")
    layers = measurement.candidates.layers
    assert kept_cost(layers, made.ranks) <= 0.4 * measurement.candidates.layer_parameters
    assert made.recipe.metric == "second_moment"


def test_signs_alternate_so_that_the_sum_stays_near_zero():
    """20×20: break-even is at rank 9, so the first eleven drops are free of any saving."""
    layers = layers_of((20, 20), (20, 20))
    up, down = np.full(20, 1.0), np.full(20, -2.0)
    ranks = zero_sum(layers, {"l0": up, "l1": down}, weights_within(layers, 800 - 1))
    # +1 −2 +1 +1 −2 …: l0 gives up two components for one of l1, until l0 pays first.
    assert ranks == {"l0": 9, "l1": 20}


def test_the_smallest_change_of_the_wanted_sign_goes_first():
    layers = layers_of((20, 20), (20, 20))
    ranks = zero_sum(
        layers, {"l0": np.full(20, 3.0), "l1": np.full(20, 1.0)}, weights_within(layers, 799)
    )
    assert ranks == {"l0": 20, "l1": 9}


def test_within_a_layer_small_singular_values_go_first_whatever_they_score():
    layers = layers_of((20, 20), (20, 20))
    guarded = np.full(20, 1e-6)
    guarded[-1] = 50.0  # only its smallest component is dear, and it stands in front
    ranks = zero_sum(layers, {"l0": guarded, "l1": np.full(20, 1.0)}, weights_within(layers, 799))
    assert ranks == {"l0": 20, "l1": 9}


def slowly(layers, changes, weights):
    """The rule read literally: look at every layer's next component at each step."""
    ranks = {name: layer.full_rank for name, layer in layers.items()}
    total = 0.0
    while kept_cost(layers, ranks) > weights:
        offers = [(changes[n][r - 1], n) for n, r in ranks.items() if r > 1]
        wanted = [o for o in offers if (o[0] >= 0) == (total <= 0)] or offers
        change, name = min(wanted, key=lambda offer: (abs(offer[0]), offer[1]))
        total += change
        ranks[name] -= 1
    return {
        n: r if r <= layers[n].break_even_rank else layers[n].full_rank for n, r in ranks.items()
    }


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.15, 1.0))
def test_it_is_the_rule_read_literally(seed, share):
    layers = layers_of((18, 24), (30, 20), (16, 16))
    generator = np.random.default_rng(seed)
    changes = {
        name: generator.standard_normal(layer.full_rank) * generator.exponential()
        for name, layer in layers.items()
    }
    weights = share * sum(layer.parameters for layer in layers.values())
    found = zero_sum(layers, changes, weights_within(layers, weights))
    assert found == slowly(layers, changes, weights)
    assert kept_cost(layers, found) <= weights


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), share=st.floats(0.0, 1.0), multiple=st.sampled_from([1, 3, 4, 8])
)
def test_budget_and_multiples_hold(seed, share, multiple):
    layers = layers_of((18, 24), (30, 20), (40, 40), (16, 16))
    floor = sum(layer.cost(multiple) for layer in layers.values())
    dense = sum(layer.parameters for layer in layers.values())
    weights = floor + share * (dense - floor)
    generator = np.random.default_rng(seed)
    changes = {n: generator.standard_normal(layer.full_rank) for n, layer in layers.items()}
    ranks = zero_sum(layers, changes, weights_within(layers, weights), multiple=multiple)
    assert kept_cost(layers, ranks) <= weights
    for name, rank in ranks.items():
        layer = layers[name]
        assert rank == layer.full_rank or (rank % multiple == 0 and rank >= 1)
        assert rank == layer.full_rank or rank <= layer.break_even_rank
