"""What a layer's loss weighs when a budget is shared: each a registered pure function."""

from __future__ import annotations

import math
from collections.abc import Callable

from compressor.collapse.metrics import nc1_quotient
from compressor.collapse.watch import LayerStatistics
from compressor.methods.metrics import known_statistics
from compressor.methods.recipe import Recipe
from compressor.registry import Registry

LayerWeight = Callable[[LayerStatistics | None, float, Recipe], float]
"""From statistics, the layer's total energy in its metric and the recipe to the weight s_l.

Statistics are None where only the weights were looked at; guidance (β > 0) has nothing to go by.
"""

LAYER_WEIGHTS: Registry[LayerWeight] = Registry("layer weight", group="layer_weights")


@LAYER_WEIGHTS.register("one")
def one(statistics: LayerStatistics | None, energy: float, recipe: Recipe) -> float:
    """1: the energies are losses already and compare across layers."""
    del statistics, energy, recipe
    return 1.0


@LAYER_WEIGHTS.register("relative")
def relative(statistics: LayerStatistics | None, energy: float, recipe: Recipe) -> float:
    """q_out^β / tr: a share of the layer's own energy; collapsed layers (small q) go first."""
    return _guidance(statistics, recipe) / energy if energy > 0 else 0.0


@LAYER_WEIGHTS.register("root")
def root(statistics: LayerStatistics | None, energy: float, recipe: Recipe) -> float:
    """q_out^β / √tr: between absolute and relative."""
    return _guidance(statistics, recipe) / math.sqrt(energy) if energy > 0 else 0.0


@LAYER_WEIGHTS.register("guided")
def guided(statistics: LayerStatistics | None, energy: float, recipe: Recipe) -> float:
    """q_out^β: losses as they are, but collapsed layers (small q) are given up first."""
    del energy
    return _guidance(statistics, recipe)


def _guidance(statistics: LayerStatistics | None, recipe: Recipe) -> float:
    if recipe.beta == 0:
        return 1.0
    quotient = nc1_quotient(known_statistics(statistics).output_classes)
    if quotient is None:
        return 1.0
    return math.pow(min(max(quotient, 1e-6), 1e6), recipe.beta)
