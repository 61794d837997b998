"""What ranks a recipe gives: its losses, shared out by its allocator."""

from __future__ import annotations

from statistics import median

import torch

from compressor.methods.allocation import ALLOCATORS, Options, options
from compressor.methods.constraints import Constraints
from compressor.methods.layer_weights import LAYER_WEIGHTS
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe

MEASURED = "measured"
"""The allocation whose losses are corrected by measurement (`measured_ranks`)."""

MOST_CORRECTED = 10.0


def allocate(
    measurement: Measurement, recipe: Recipe, constraints: Constraints, *, multiple: int
) -> dict[str, int]:
    """Return the ranks that a recipe gives within what the candidates may cost together."""
    layers = {
        name: layer_options(measurement, name, recipe, constraints, multiple=multiple)
        for name in measurement.candidates.layers
    }
    return ALLOCATORS.get(recipe.allocation)(layers, constraints.limits)


def layer_options(
    measurement: Measurement, name: str, recipe: Recipe, constraints: Constraints, *, multiple: int
) -> Options:
    """Return what a layer may become, with the losses that a recipe predicts."""
    layer = measurement.candidates.layers[name]
    tail = measurement.decompositions.get(name, recipe).decomposition.tail()
    known = measurement.layers.get(name)
    weight = LAYER_WEIGHTS.get(recipe.layer_weight)(known, float(tail[0]), recipe)
    return options(layer, (tail * weight).cpu().numpy(), constraints, multiple=multiple)


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
