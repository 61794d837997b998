"""What a layer is truncated in, and what its loss weighs: each a registered pure function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compressor.collapse.fisher import KroneckerFisher
from compressor.collapse.loss import LossGradient
from compressor.collapse.metrics import nc1_quotient
from compressor.collapse.watch import LayerStatistics
from compressor.methods.decompose import Decomposition, decompose, decompose_on_smaller_side
from compressor.methods.recipe import Recipe
from compressor.registry import Registry

SMALLEST_ALPHA = 0.05
"""Within-class directions keep at least this weight, however far a layer has collapsed."""


DRAWN_NEAR = 0.1
DRAWN_FAR = 0.05
"""How far the factors of the shrunk Fisher are drawn towards the identity. On SmolLM2-135M, 16
windows, 80 % of the layers' parameters: perplexity over dense 1.53 without, 1.40 with both."""


OUTPUT_DAMPING = 1e-3
"""Share of the mean eigenvalue added to a metric on outputs that a regression is taken in."""

Needs = Literal["weights", "forward", "gradients", "loss"]
"""What has to be known: the weights alone, one forward pass, or a backward pass too: of the
model's own predictions (``gradients``) or of the calibration loss under given labels (``loss``)."""


@dataclass(frozen=True)
class Truncation:
    """A layer's decomposition in a metric.

    Args:
        decomposition: Energies and factors at every rank.
        mean: μ [n]; the corrected bias is b + (W − Ŵ) μ. None corrects nothing.
    """

    decomposition: Decomposition
    mean: Tensor | None = None


@dataclass(frozen=True)
class Metric:
    """A metric on a layer's weights.

    Args:
        truncate: From the weights W [m, n] in float64, the layer's statistics and the recipe to
            its decomposition.
        needs: What `capture` has to gather for it.
    """

    truncate: Callable[[Tensor, LayerStatistics | None, Recipe], Truncation]
    needs: Needs


LayerWeight = Callable[[LayerStatistics | None, float, Recipe], float]
"""From statistics, the layer's total energy in its metric and the recipe to the weight s_l.

Statistics are None where only the weights were looked at; guidance (β > 0) has nothing to go by.
"""

METRICS: Registry[Metric] = Registry("metric", group="metrics")
LAYER_WEIGHTS: Registry[LayerWeight] = Registry("layer weight", group="layer_weights")


def _identity(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
    """The Frobenius norm of the weights: plain truncated SVD (Eckart & Young 1936)."""
    del statistics, recipe
    return Truncation(decompose(weight))


def _second_moment(
    weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe
) -> Truncation:
    """E[zzᵀ], uncentred, without bias correction (SVD-LLM, arXiv 2403.07378, whitening)."""
    del recipe
    moments = _known(statistics).inputs
    mean = moments.mean
    return Truncation(decompose(weight, moments.total_covariance + torch.outer(mean, mean)))


def _class_aware(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
    """Σ_B + α Σ_W: below α = 1, directions that only vary within classes are given up first.

    At α = 1 this is the covariance Σ_T: reconstruction of the outputs with a corrected bias
    (DRONE, NeurIPS 2021; AFM). A layer without a bias keeps the mean in the metric instead.
    """
    known = _known(statistics)
    moments = known.inputs
    if recipe.alpha == "nc1":
        quotient = nc1_quotient(known.input_classes)
        alpha = 1.0 if quotient is None else max(_share(quotient), SMALLEST_ALPHA)
    else:
        alpha = recipe.alpha
    matrix = moments.between_covariance + alpha * moments.within_covariance
    if known.layer.has_bias:
        return Truncation(decompose(weight, matrix), moments.mean)
    return Truncation(decompose(weight, matrix + torch.outer(moments.mean, moments.mean)))


def _fisher(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
    """The Kronecker-factored Fisher: energies are twice the KL that is lost, to second order."""
    del recipe
    known = _known(statistics)
    fisher = _known_fisher(known)
    pulled = fisher.pulled / fisher.energy if fisher.energy > 0 else fisher.pulled
    return Truncation(
        decompose_on_smaller_side(weight, fisher.near, pulled),
        fisher.centre if known.layer.has_bias else None,
    )


def _shrunk_fisher(
    weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe
) -> Truncation:
    """The same, both factors drawn towards the identity: few samples say little of most directions.

    ``near`` becomes near + `DRAWN_NEAR` · its mean eigenvalue, the other factor M becomes
    (1 − `DRAWN_FAR`) M + `DRAWN_FAR` · tr M/k · I, before it is seen through the weights. (Linear
    shrinkage of a covariance: Ledoit & Wolf, J. Multivariate Anal. 88, 2004.)
    """
    del recipe
    known = _known(statistics)
    fisher = _known_fisher(known)
    if fisher.energy <= 0:
        return _fisher(weight, statistics, Recipe())
    rows, columns = weight.shape
    tall = rows > columns
    through = weight.T @ weight if tall else weight @ weight.T
    # Both factors have the trace E‖G‖², so that the far one's share of it is 1 below.
    drawn = through / (rows if tall else columns)
    pulled = (1 - DRAWN_FAR) * fisher.pulled / fisher.energy + DRAWN_FAR * drawn
    near = fisher.near.clone()
    near.diagonal().add_(DRAWN_NEAR * fisher.energy / len(near))
    return Truncation(
        decompose_on_smaller_side(weight, near, pulled),
        fisher.centre if known.layer.has_bias else None,
    )


def _mixed_fisher(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
    """The Fisher drawn halfway towards that of single rows, which has many more terms.

    Both factors are taken relative to their traces, and the total loss is left as the samples'
    gradients tell it: rows cannot tell how much of them cancels within a sample.
    """
    known = _known(statistics)
    fisher = _known_fisher(known)
    rows = fisher.by_row
    if rows is None or rows.energy <= 0 or fisher.energy <= 0:
        return _fisher(weight, statistics, recipe)
    near = fisher.near / fisher.energy + rows.near / rows.energy
    pulled = fisher.pulled / fisher.energy + rows.pulled / rows.energy
    total = float((fisher.near * fisher.pulled).sum()) / fisher.energy
    mixed = float((near * pulled).sum())
    scale = total / mixed if mixed > 0 else 0.0
    return Truncation(
        decompose_on_smaller_side(weight, near * scale, pulled),
        fisher.centre if known.layer.has_bias else None,
    )


def _magnitude(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
    """diag(mean |z|): ASVD's scaling S = diag(mean |z|)^α, squared, at α = 0.5 (2312.05821)."""
    del recipe
    magnitude = _known(statistics).magnitude
    if magnitude is None:
        raise ValueError("the metric needs the mean size of the inputs, which was not gathered")
    return Truncation(decompose(weight, torch.diag(magnitude)))


def _row_fisher(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
    """diag(E Σ_j G_ij²) on the outputs: the empirical Fisher summed by row (FWSVD, 2207.00112)."""
    del recipe
    rows = known_loss(statistics).rows
    return Truncation(decompose(weight, None, torch.diag(rows)))


METRICS.register("identity")(Metric(_identity, "weights"))
METRICS.register("second_moment")(Metric(_second_moment, "forward"))
METRICS.register("covariance")(Metric(_class_aware, "forward"))
METRICS.register("fisher")(Metric(_fisher, "gradients"))
METRICS.register("shrunk_fisher")(Metric(_shrunk_fisher, "gradients"))
METRICS.register("mixed_fisher")(Metric(_mixed_fisher, "gradients"))
METRICS.register("magnitude")(Metric(_magnitude, "forward"))
METRICS.register("row_fisher")(Metric(_row_fisher, "loss"))


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
    quotient = nc1_quotient(_known(statistics).output_classes)
    if quotient is None:
        return 1.0
    return math.pow(min(max(quotient, 1e-6), 1e6), recipe.beta)


def output_metrics(statistics: Mapping[str, LayerStatistics]) -> dict[str, Tensor]:
    """Return the Fisher's factor A [m, m] on the outputs of each layer that has it in full.

    Layers with more outputs than inputs have it seen through their weights only. It is damped, for
    directions that no calibration sample depends on may matter to others.
    """
    found = {}
    for name, layer in statistics.items():
        rows, columns = layer.layer.shape
        if layer.fisher is not None and rows <= columns and layer.fisher.energy > 0:
            near = layer.fisher.near.clone()
            near.diagonal().add_(OUTPUT_DAMPING * float(near.diagonal().mean()))
            found[name] = near
    return found


def _known(statistics: LayerStatistics | None) -> LayerStatistics:
    if statistics is None:
        raise ValueError("the metric needs statistics of the layer's inputs")
    return statistics


def _known_fisher(statistics: LayerStatistics) -> KroneckerFisher:
    if statistics.fisher is None:
        raise ValueError("the metric needs gradients, which were not gathered")
    return statistics.fisher


def known_loss(statistics: LayerStatistics | None) -> LossGradient:
    """Return the calibration loss's gradient in a layer's weights.

    Raises:
        ValueError: If it was not gathered.
    """
    found = _known(statistics).loss
    if found is None:
        raise ValueError("the loss's gradient in the weights was not gathered")
    return found


def _share(quotient: float) -> float:
    """Return q/(1 + q), 1 where q is infinite."""
    return 1.0 if quotient == float("inf") else quotient / (1 + quotient)
