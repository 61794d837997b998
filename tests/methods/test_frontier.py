"""The predicted frontier: what the allocator gives at each share, in nats where they are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compressor.methods.budget import smallest
from compressor.methods.frontier import RANKS, predicted_frontier
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import MEASURED
from compressor.stages import plan
from tests.methods.measured import measured

FISHER = Recipe(metric="fisher")
LAYERS = measured().candidates.layers
TOTAL = measured().candidates.layer_parameters


def frontier(recipe=FISHER, ranks=None, **words):
    return predicted_frontier(measured(), ranks or {}, recipe, **words)


def brute_force(share):
    """Return the least predicted loss of all pairs of ranks within a share of the weights."""
    tails = {
        name: measured().decompositions.get(name, FISHER).decomposition.tail() / 2
        for name in LAYERS
    }
    options = {
        name: [*range(1, layer.break_even_rank + 1), layer.full_rank]
        for name, layer in LAYERS.items()
    }
    return min(
        sum(float(tails[name][rank]) for name, rank in zip(LAYERS, ranks, strict=True))
        for ranks in itertools.product(*options.values())
        if sum(LAYERS[name].cost(rank) for name, rank in zip(LAYERS, ranks, strict=True))
        <= share * TOTAL + 1e-9
    )


def test_points_are_the_best_allocations_from_the_smallest_share_to_the_dense_model():
    found = frontier()
    assert all(layer.break_even_rank < RANKS for layer in LAYERS.values())
    assert found.smallest == found.points[0].share == smallest(measured().candidates) / TOTAL
    assert (found.points[-1].share, found.points[-1].loss) == (1.0, 0.0)
    shares = [point.share for point in found.points]
    assert shares == sorted(set(shares))
    assert np.all(np.diff([point.loss for point in found.points]) < 0)
    for point in found.points:
        # The greedy steps of the knapsack may miss the optimum by a little.
        assert brute_force(point.share) * (1 - 1e-9) <= point.loss
        assert point.loss <= 1.05 * brute_force(point.share) + 1e-12


@pytest.mark.parametrize("rank", [4, 8, 11])
def test_nats_are_those_that_a_run_loses(rank):
    ranks = {"a": rank, "b": rank}
    found = frontier(ranks=ranks)
    assert found.unit == "nats"
    assert found.run.share == sum(LAYERS[name].cost(rank) for name in ranks) / TOTAL
    measured_loss = measured().divergence(measured().factorized(ranks, FISHER)[0])
    # Of second order, of each layer alone, and from other samples: its order of magnitude.
    assert 0.2 < found.run.loss / measured_loss < 5


def test_a_layer_that_is_left_out_or_above_break_even_is_dense():
    assert frontier(ranks={"a": 20}).run == frontier().run
    assert (frontier().run.share, frontier().run.loss) == (1.0, 0.0)


def test_losses_that_were_corrected_by_measurement_are_shared_by_the_metric():
    recipe = FISHER.model_copy(update={"allocation": MEASURED})
    assert frontier(recipe).points == frontier().points


def test_other_metrics_have_no_scale():
    found = frontier(Recipe(layer_weight="relative"))
    assert found.unit == "energy"
    # At rank 0 each layer would lose 1.
    assert 1 < found.points[0].loss < 2


def test_ranks_keep_to_their_multiple():
    found = frontier(multiple=8)
    assert found.smallest == sum(layer.cost(8) for layer in LAYERS.values()) / TOTAL
    assert found.points[0].share == found.smallest
    assert len(found.points) == 2 * 2  # each of the two layers has rank 8, or is dense


def test_a_rule_of_a_methods_own_has_no_frontier():
    made = plan(measured("evbmf"), "layers=60%", method="evbmf")
    assert predicted_frontier(measured("evbmf"), made.ranks, made.recipe) is None
    assert METHODS.get("evbmf").needs(gradients=False)
