"""Metrics on a layer's inputs and outputs, and layer weights: each a registered pure function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.collapse.capture import LayerStatistics
from compressor.collapse.metrics import nc1_quotient
from compressor.collapse.moments import ClassMoments
from compressor.methods.recipe import Recipe
from compressor.registry import Registry

SMALLEST_ALPHA = 0.05
"""Within-class directions keep at least this weight, however far a layer has collapsed."""


@dataclass(frozen=True)
class InputMetric:
    """A metric on a layer's inputs, and the mean input that the bias correction makes exact.

    Args:
        matrix: Σ [n, n], or None for the identity.
        mean: μ [n]; the corrected bias is b + (W − Ŵ) μ. None corrects nothing.
    """

    matrix: Tensor | None
    mean: Tensor | None


MakeInputMetric = Callable[[LayerStatistics, Recipe], InputMetric]
MakeOutputMetric = Callable[[LayerStatistics], Tensor | None]
LayerWeight = Callable[[LayerStatistics, float, Recipe], float]
"""From statistics, the layer's total energy in its metric and the recipe to the weight s_l."""

INPUT_METRICS: Registry[MakeInputMetric] = Registry("input metric", group="input_metrics")
OUTPUT_METRICS: Registry[MakeOutputMetric] = Registry("output metric", group="output_metrics")
LAYER_WEIGHTS: Registry[LayerWeight] = Registry("layer weight", group="layer_weights")


@INPUT_METRICS.register("identity")
def identity(statistics: LayerStatistics, recipe: Recipe) -> InputMetric:
    """The Frobenius norm of the weights: plain truncated SVD (Eckart & Young 1936)."""
    del statistics, recipe
    return InputMetric(None, None)


@INPUT_METRICS.register("second_moment")
def second_moment(statistics: LayerStatistics, recipe: Recipe) -> InputMetric:
    """E[zzᵀ], uncentred, without bias correction (SVD-LLM, arXiv 2403.07378, whitening)."""
    moments = _rows(statistics, recipe)
    mean = moments.mean
    return InputMetric(moments.total_covariance + torch.outer(mean, mean), None)


@INPUT_METRICS.register("diagonal")
def diagonal(statistics: LayerStatistics, recipe: Recipe) -> InputMetric:
    """diag(E[zᵢ²]): activation scaling per channel (in the spirit of ASVD, arXiv 2312.05821)."""
    full = second_moment(statistics, recipe).matrix
    assert full is not None
    return InputMetric(full.diagonal().diag(), None)


@INPUT_METRICS.register("covariance")
def covariance(statistics: LayerStatistics, recipe: Recipe) -> InputMetric:
    """Σ_T with a corrected bias, or E[zzᵀ] where the layer has no bias to correct."""
    moments = _rows(statistics, recipe)
    return _centred(statistics, moments, moments.total_covariance)


@INPUT_METRICS.register("class_aware")
def class_aware(statistics: LayerStatistics, recipe: Recipe) -> InputMetric:
    """Σ_B + α Σ_W: below α = 1, directions that only vary within classes are given up first."""
    moments = _rows(statistics, recipe)
    alpha = recipe.alpha
    if alpha == "nc1":
        quotient = nc1_quotient(statistics.inputs)
        alpha = 1.0 if quotient is None else _share(quotient)
    matrix = moments.between_covariance + max(alpha, SMALLEST_ALPHA) * moments.within_covariance
    return _centred(statistics, moments, matrix)


@OUTPUT_METRICS.register("identity")
def output_identity(statistics: LayerStatistics) -> None:
    """Every output counts alike."""
    del statistics


@OUTPUT_METRICS.register("fisher")
def fisher(statistics: LayerStatistics) -> Tensor:
    """F = E Σ δδᵀ over a sample's positions: a second-order estimate of the KL that is lost."""
    return _gradient(statistics)


@OUTPUT_METRICS.register("row_fisher")
def row_fisher(statistics: LayerStatistics) -> Tensor:
    """The diagonal of F: importance per output row (FWSVD, arXiv 2207.00112)."""
    return _gradient(statistics).diagonal().diag()


@LAYER_WEIGHTS.register("one")
def one(statistics: LayerStatistics, energy: float, recipe: Recipe) -> float:
    """1: the energies are losses already and compare across layers."""
    del statistics, energy, recipe
    return 1.0


@LAYER_WEIGHTS.register("relative")
def relative(statistics: LayerStatistics, energy: float, recipe: Recipe) -> float:
    """1/tr: every layer's loss counts as a share of its own energy."""
    del statistics, recipe
    return 1 / energy if energy > 0 else 0.0


@LAYER_WEIGHTS.register("root")
def root(statistics: LayerStatistics, energy: float, recipe: Recipe) -> float:
    """tr^−½: between absolute and relative."""
    del statistics, recipe
    return energy**-0.5 if energy > 0 else 0.0


@LAYER_WEIGHTS.register("nc1")
def nc1_guided(statistics: LayerStatistics, energy: float, recipe: Recipe) -> float:
    """q_out^β / tr: a layer whose output has collapsed (small q) is given up first."""
    quotient = nc1_quotient(statistics.outputs)
    if energy <= 0 or quotient is None:
        return 0.0 if energy <= 0 else 1 / energy
    return max(quotient, 1e-6) ** recipe.beta / energy


def _rows(statistics: LayerStatistics, recipe: Recipe) -> ClassMoments:
    """Return the input moments, rows counted as the recipe says."""
    if recipe.rows == "uniform":
        return statistics.inputs
    assert statistics.weighted_inputs is not None
    return statistics.weighted_inputs


def _centred(statistics: LayerStatistics, moments: ClassMoments, matrix: Tensor) -> InputMetric:
    if statistics.layer.has_bias:
        return InputMetric(matrix, moments.mean)
    return InputMetric(matrix + torch.outer(moments.mean, moments.mean), None)


def _gradient(statistics: LayerStatistics) -> Tensor:
    assert statistics.output_gradient is not None
    return statistics.output_gradient


def _share(quotient: float) -> float:
    """Return q/(1 + q), 1 where q is infinite."""
    return 1.0 if quotient == float("inf") else quotient / (1 + quotient)
