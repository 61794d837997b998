"""What a recipe predicts for every budget: its frontier, from decompositions that are there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compressor.methods.allocation import ALLOCATORS, Options, options
from compressor.methods.budget import smallest
from compressor.methods.constraints import Floats
from compressor.methods.layer_weights import LAYER_WEIGHTS
from compressor.methods.measurement import Measurement
from compressor.methods.metrics import METRICS
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import MEASURED
from compressor.schema import FrontierPoint, PredictedFrontier

STEPS = 24
"""Steps of the share from the smallest to 1, the finer the smaller: there losses are steepest."""

RANKS = 96
"""Ranks that a layer may take, at most: finer ones cost time and move no line of a drawing."""


def predicted_frontier(
    measurement: Measurement, ranks: Mapping[str, int], recipe: Recipe, *, multiple: int = 1
) -> PredictedFrontier | None:
    """Return the loss that a recipe predicts at each share of the layers' weights.

    Nothing is run: layers lose the tails of their decompositions, and the recipe's allocator shares
    weights alone, whatever other budgets the run had. Losses corrected by measurement hold at the
    ranks they were measured at; such a recipe shares by its metric here. Energies in the Fisher
    metric are twice the KL that is lost, to second order (`compressor.methods.metrics`), of each
    layer alone: what layers do to each other, and refits, are no part of it.

    Args:
        measurement: The dense model, measured.
        ranks: Rank of each layer in the run; a layer that is left out is dense.
        recipe: How the run truncated and shared.
        multiple: Ranks are multiples of this.

    Returns:
        The frontier; None where the allocation is a method's own rule.
    """
    allocation = "knapsack" if recipe.allocation == MEASURED else recipe.allocation
    if allocation not in ALLOCATORS.names():
        return None
    candidates = measurement.candidates
    total = candidates.layer_parameters
    in_nats = METRICS.get(recipe.metric).needs == "gradients"
    losses: dict[str, Floats] = {}
    layers: dict[str, Options] = {}
    for name, layer in candidates.layers.items():
        tail = measurement.decompositions.get(name, recipe).decomposition.tail().cpu().numpy()
        weight = LAYER_WEIGHTS.get(recipe.layer_weight)(
            measurement.layers.get(name), float(tail[0]), recipe
        )
        losses[name] = tail / 2 if in_nats else tail * weight
        layers[name] = _thinned(options(layer, tail * weight, multiple=multiple))

    def point(ranks: Mapping[str, int]) -> FrontierPoint:
        kept = {
            name: layer.kept(ranks.get(name, layer.full_rank))
            for name, layer in candidates.layers.items()
        }
        weights = sum(candidates.layers[name].cost(rank) for name, rank in kept.items())
        lost = sum(float(losses[name][rank]) for name, rank in kept.items())
        return FrontierPoint(share=weights / total, loss=lost)

    least = smallest(candidates, multiple=multiple) / total
    limits = (least + (1 - least) * np.linspace(0, 1, STEPS + 1) ** 2) * total
    found = {
        reached.share: reached
        for reached in (point(ALLOCATORS.get(allocation)(layers, limit)) for limit in limits)
    }
    return PredictedFrontier(
        unit="nats" if in_nats else "energy",
        smallest=least,
        run=point(ranks),
        points=tuple(found[share] for share in sorted(found)),
    )


def _thinned(option: Options) -> Options:
    """Return at most `RANKS` of a layer's options, at positions of equal ratio, ends included."""
    count = len(option.ranks)
    if count <= RANKS:
        return option
    at = np.unique(np.geomspace(1, count, RANKS).round().astype(int)) - 1
    return Options(option.ranks[at], option.weights[at], option.costs[:, at], option.losses[at])
