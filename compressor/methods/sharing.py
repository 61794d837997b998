"""What ranks a recipe gives: its losses, shared out by its allocator."""

from __future__ import annotations

from statistics import median

import torch

from compressor.methods.allocation import ALLOCATORS, options
from compressor.methods.constraints import Constraints
from compressor.methods.measurement import Measurement
from compressor.methods.metrics import LAYER_WEIGHTS
from compressor.methods.recipe import Recipe

MEASURED = "measured"
"""The allocation whose losses are corrected by measurement (`measured_ranks`)."""

MOST_CORRECTED = 10.0


def allocate(
    measurement: Measurement, recipe: Recipe, constraints: Constraints, *, multiple: int
) -> dict[str, int]:
    """Return the ranks that a recipe gives within what the candidates may cost together."""
    layers = {}
    for name, layer in measurement.candidates.layers.items():
        tail = measurement.decompositions.get(name, recipe).decomposition.tail()
        weight = LAYER_WEIGHTS.get(recipe.layer_weight)(
            measurement.layers.get(name), float(tail[0]), recipe
        )
        losses = (tail * weight).cpu().numpy()
        layers[name] = options(layer, losses, constraints, multiple=multiple)
    return ALLOCATORS.get(recipe.allocation)(layers, constraints.limits)


def measured_ranks(
    measurement: Measurement,
    ranks: dict[str, int],
    recipe: Recipe,
    *,
    constraints: Constraints,
    multiple: int,
) -> dict[str, int]:
    """Return ranks allocated by losses that are corrected by measurement.

    A layer's predicted losses are multiplied by its share of the KL (`attributed_divergence`) over
    the loss predicted at its rank. Factors are taken relative to their median and at most
    `MOST_CORRECTED`, for a share of a small loss is mostly noise; a layer that was dense gets 1.

    Args:
        measurement: What was measured of the dense model.
        ranks: Ranks at which losses are measured.
        recipe: How to truncate to them.
        constraints: What the layers may cost together.
        multiple: Ranks are multiples of this.
    """
    shares = measurement.attributed(ranks, recipe)
    tails = {
        name: measurement.decompositions.get(name, recipe).decomposition.tail()
        for name in measurement.candidates.layers
    }
    smallest = torch.finfo(torch.float64).tiny
    ratios = {
        name: max(share, 0.0) / max(float(tails[name][ranks[name]]), smallest)
        for name, share in shares.items()
    }
    typical = median(ratios.values()) if ratios else 0.0
    corrections = dict.fromkeys(tails, 1.0)
    if typical > 0:
        for name, ratio in ratios.items():
            corrections[name] = min(max(ratio / typical, 1 / MOST_CORRECTED), MOST_CORRECTED)
    layers = {
        name: options(
            layer, (tails[name] * corrections[name]).cpu().numpy(), constraints, multiple=multiple
        )
        for name, layer in measurement.candidates.layers.items()
    }
    return ALLOCATORS.get("knapsack")(layers, constraints.limits)


def label(recipe: Recipe) -> str:
    """Return a recipe in a few words, for tables."""
    parts = [recipe.metric.replace("_", " ")]
    if recipe.alpha != 1:
        parts.append(f"α={'q/(1+q)' if recipe.alpha == 'nc1' else recipe.alpha}")
    if recipe.allocation != "knapsack":
        parts.append(recipe.allocation)
    elif recipe.layer_weight != "one":
        parts.append(recipe.layer_weight)
    if recipe.beta > 0:
        parts.append(f"β={recipe.beta:g}")
    if recipe.refit is not None:
        parts.append("refitted")
    return ", ".join(parts)
