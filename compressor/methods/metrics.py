"""What a layer is truncated in, and what its loss weighs: each a registered pure function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compressor.collapse.fisher import KroneckerFisher, RowFactors
from compressor.collapse.loss import LossGradient
from compressor.collapse.metrics import nc1_quotient
from compressor.collapse.watch import LayerStatistics
from compressor.methods.decompose import Factors, decompose, decompose_on_smaller_side
from compressor.methods.recipe import Recipe
from compressor.registry import Registry

SMALLEST_ALPHA = 0.05
"""Within-class directions keep at least this weight, however far a layer has collapsed."""


DRAWN_NEAR = 0.1
DRAWN_FAR = 0.05
"""How far the factors of the shrunk Fisher are drawn towards the identity. On SmolLM2-135M, 16
windows, 80 % of the layers' parameters: perplexity over dense 1.53 without, 1.40 with both."""


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

    decomposition: Factors
    mean: Tensor | None = None


@dataclass(frozen=True)
class Sides:
    """A metric on a layer's weights as it stands on both of their sides.

    Args:
        inputs: Σ [n, n]; None is the identity.
        outputs: F [m, m]; None is the identity.
        mean: As in `Truncation`.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    mean: Tensor | None = None


Truncate = Callable[[Tensor, LayerStatistics | None, Recipe], Truncation]
"""From the weights W [m, n] in float64, the layer's statistics and the recipe to the layer's
decomposition."""

BothSides = Callable[[Tensor, LayerStatistics | None, Recipe], Sides]
"""From the same to the metric on both sides."""


@dataclass(frozen=True)
class Metric:
    """A metric on a layer's weights.

    Args:
        truncate: How a matrix is truncated in it.
        needs: What `capture` has to gather for it.
        sides: The metric itself, for layers that take another form than two matrices
            (`compressor.methods.separable`); None where it has no such form.
    """

    truncate: Truncate
    needs: Needs
    sides: BothSides | None = None


METRICS: Registry[Metric] = Registry("metric", group="metrics")


def _identity(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Sides:
    """The Frobenius norm of the weights: plain truncated SVD (Eckart & Young 1936)."""
    del weight, statistics, recipe
    return Sides()


def _second_moment(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Sides:
    """E[zzᵀ], uncentred, without bias correction (SVD-LLM, arXiv 2403.07378, whitening)."""
    del weight, recipe
    moments = known_statistics(statistics).inputs
    mean = moments.mean
    return Sides(moments.total_covariance + torch.outer(mean, mean))


def _class_aware(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Sides:
    """Σ_B + α Σ_W: below α = 1, directions that only vary within classes are given up first.

    At α = 1 this is the covariance Σ_T: reconstruction of the outputs with a corrected bias
    (DRONE, NeurIPS 2021; AFM). A layer without a bias keeps the mean in the metric instead.
    """
    del weight
    known = known_statistics(statistics)
    moments = known.inputs
    if recipe.alpha == "nc1":
        quotient = nc1_quotient(known.input_classes)
        alpha = 1.0 if quotient is None else max(_share(quotient), SMALLEST_ALPHA)
    else:
        alpha = recipe.alpha
    matrix = moments.between_covariance + alpha * moments.within_covariance
    if known.layer.has_bias:
        return Sides(matrix, mean=moments.mean)
    return Sides(matrix + torch.outer(moments.mean, moments.mean))


def _magnitude(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Sides:
    """diag(mean |z|): ASVD's scaling S = diag(mean |z|)^α, squared, at α = 0.5 (2312.05821)."""
    del weight, recipe
    magnitude = known_statistics(statistics).magnitude
    if magnitude is None:
        raise ValueError("the metric needs the mean size of the inputs, which was not gathered")
    return Sides(torch.diag(magnitude))


def _row_fisher(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Sides:
    """diag(E Σ_j G_ij²) on the outputs: the empirical Fisher summed by row (FWSVD, 2207.00112)."""
    del weight, recipe
    return Sides(outputs=torch.diag(known_loss(statistics).rows))


def _fisher(weight: Tensor, fisher: KroneckerFisher, *, whole: bool) -> tuple[Tensor, Tensor]:
    """The Kronecker-factored Fisher: energies are twice the KL that is lost, to second order."""
    del weight
    far = _far(fisher, whole)
    return fisher.near, far / fisher.energy if fisher.energy > 0 else far


def _shrunk_fisher(
    weight: Tensor, fisher: KroneckerFisher, *, whole: bool
) -> tuple[Tensor, Tensor]:
    """The same, both factors drawn towards the identity: few samples say little of most directions.

    ``near`` becomes near + `DRAWN_NEAR` · its mean eigenvalue, the other factor M becomes
    (1 − `DRAWN_FAR`) M + `DRAWN_FAR` · tr M/k · I. (Linear shrinkage of a covariance: Ledoit &
    Wolf, J. Multivariate Anal. 88, 2004.)
    """
    if fisher.energy <= 0:
        return _fisher(weight, fisher, whole=whole)
    far = _far(fisher, whole)
    if whole:
        identity = torch.eye(len(far), dtype=far.dtype, device=far.device)
    else:
        identity = weight.T @ weight if len(weight) > weight.shape[1] else weight @ weight.T
    # Both factors have the trace E‖G‖², so that the far one's share of it is 1 below.
    drawn = identity / max(weight.shape)
    near = fisher.near.clone()
    near.diagonal().add_(DRAWN_NEAR * fisher.energy / len(near))
    return near, (1 - DRAWN_FAR) * far / fisher.energy + DRAWN_FAR * drawn


def _mixed_fisher(weight: Tensor, fisher: KroneckerFisher, *, whole: bool) -> tuple[Tensor, Tensor]:
    """The Fisher drawn halfway towards that of single rows, which has many more terms.

    Both factors are taken relative to their traces, and the total loss is left as the samples'
    gradients tell it: rows cannot tell how much of them cancels within a sample.
    """
    rows = fisher.by_row
    if rows is None or rows.energy <= 0 or fisher.energy <= 0:
        return _fisher(weight, fisher, whole=whole)
    near = fisher.near / fisher.energy + rows.near / rows.energy
    pulled = fisher.pulled / fisher.energy + rows.pulled / rows.energy
    total = float((fisher.near * fisher.pulled).sum()) / fisher.energy
    mixed = float((near * pulled).sum())
    scale = total / mixed if mixed > 0 else 0.0
    if not whole:
        return near * scale, pulled
    return near * scale, _far(fisher, whole) / fisher.energy + _far(rows, whole) / rows.energy


FisherRule = Callable[..., tuple[Tensor, Tensor]]
"""From W and its Fisher to the factor on the smaller side and the other one, the latter seen
through the weights or whole."""


def _far(factors: KroneckerFisher | RowFactors, whole: bool) -> Tensor:
    """Return the factor of the larger side, whole or seen through the weights."""
    if not whole:
        return factors.pulled
    if factors.far is None:
        raise ValueError(
            "its other form needs the Fisher's larger factor, which was not gathered: measure "
            "with --conv-form auto or spatial"
        )
    return factors.far


def _of_sides(sides: BothSides, needs: Needs) -> Metric:
    """Return a metric that is known on both sides."""

    def truncate(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
        found = sides(weight, statistics, recipe)
        return Truncation(decompose(weight, found.inputs, found.outputs), found.mean)

    truncate.__doc__ = sides.__doc__
    return Metric(truncate, needs, sides)


def _of_fisher(rule: FisherRule) -> Metric:
    """Return a metric made of the Fisher, of which mostly the smaller side is known."""

    def centre(known: LayerStatistics) -> Tensor | None:
        return _known_fisher(known).centre if known.layer.has_bias else None

    def truncate(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
        del recipe
        known = known_statistics(statistics)
        near, pulled = rule(weight, _known_fisher(known), whole=False)
        return Truncation(decompose_on_smaller_side(weight, near, pulled), centre(known))

    def sides(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Sides:
        del recipe
        known = known_statistics(statistics)
        near, far = rule(weight, _known_fisher(known), whole=True)
        inputs, outputs = (near, far) if len(weight) > weight.shape[1] else (far, near)
        return Sides(inputs, outputs, centre(known))

    truncate.__doc__ = rule.__doc__
    return Metric(truncate, "gradients", sides)


METRICS.register("identity")(_of_sides(_identity, "weights"))
METRICS.register("second_moment")(_of_sides(_second_moment, "forward"))
METRICS.register("covariance")(_of_sides(_class_aware, "forward"))
METRICS.register("fisher")(_of_fisher(_fisher))
METRICS.register("shrunk_fisher")(_of_fisher(_shrunk_fisher))
METRICS.register("mixed_fisher")(_of_fisher(_mixed_fisher))
METRICS.register("magnitude")(_of_sides(_magnitude, "forward"))
METRICS.register("row_fisher")(_of_sides(_row_fisher, "loss"))


def output_metric(statistics: LayerStatistics) -> Tensor | None:
    """Return the Fisher's factor A [m, m] on a layer's outputs, where it is known in full.

    Of layers with more outputs than inputs it is seen through their weights only.
    """
    rows, columns = statistics.layer.shape
    fisher = statistics.fisher
    return None if fisher is None or rows > columns or fisher.energy <= 0 else fisher.near


def known_statistics(statistics: LayerStatistics | None) -> LayerStatistics:
    """Return statistics that have to be there.

    Raises:
        ValueError: If there are none.
    """
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
    found = known_statistics(statistics).loss
    if found is None:
        raise ValueError("the loss's gradient in the weights was not gathered")
    return found


def _share(quotient: float) -> float:
    """Return q/(1 + q), 1 where q is infinite."""
    return 1.0 if quotient == float("inf") else quotient / (1 + quotient)
