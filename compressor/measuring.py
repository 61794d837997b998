"""Collapse and rank of every candidate layer, as `measure` reports them."""

from __future__ import annotations

from torch import Tensor

from compressor.collapse.loss import LossGradient
from compressor.collapse.metrics import collapse, nearest_mean_mismatch
from compressor.collapse.spectra import (
    effective_rank,
    numerical_rank,
    singular_values,
    stable_rank,
)
from compressor.layers.kinds import LAYER_KINDS
from compressor.methods.measurement import Measurement
from compressor.schema import MeasuredLayer


def measured_layers(measurement: Measurement) -> tuple[MeasuredLayer, ...]:
    """Return the figures of every candidate, in forward order.

    Args:
        measurement: With statistics.
    """
    statistics = measurement.statistics
    assert statistics is not None
    modules = dict(measurement.model.named_modules())
    predictions = statistics.logits.argmax(1)
    labels = statistics.labels
    mismatch = {
        group: nearest_mean_mismatch(pooled, labels, predictions)
        for group, pooled in statistics.pooled.items()
    }
    measured = []
    for name in measurement.candidates.layers:
        found = statistics.layers[name]
        layer = found.layer
        weight = LAYER_KINDS.get(layer.kind).matrix(modules[name]).double()
        weight = weight.to(found.inputs.means.device)
        inputs = collapse(found.input_classes)
        # Where rare tokens stand apart, Σ_W of the classes alone is known by its trace only.
        spread = None if found.rest else found.inputs.within_covariance
        if spread is not None and found.counts is None:  # an embedding's rows are its outputs
            spread = _pushed(weight, spread)
        outputs = collapse(found.output_classes, spread)
        pooled = statistics.pooled.get(layer.group)
        # The mean of a sample's output rows is W times that of its input rows, up to the bias.
        pushed = None if pooled is None else pooled.double() @ weight.T.cpu()
        cosine, decay = (None, None)
        if found.loss is not None and not statistics.clustered:
            cosine, decay = stationarity(weight, found.loss)
        own = singular_values(weight)
        data = (
            singular_values(weight * found.counts.sqrt())
            if found.counts is not None
            else singular_values(weight, found.inputs.total_covariance)
        )
        measured.append(
            MeasuredLayer(
                name=name,
                kind=layer.kind,
                shape=layer.shape,
                full_rank=layer.full_rank,
                break_even_rank=layer.break_even_rank,
                nc1_quotient=inputs.nc1_quotient,
                nc1=inputs.nc1,
                nc1_kept=inputs.nc1_kept,
                cdnv=inputs.cdnv,
                tcv=inputs.tcv,
                tcv_relative=inputs.tcv_relative,
                nearest_mean_mismatch=mismatch.get(layer.group),
                nc1_quotient_output=outputs.nc1_quotient,
                nc1_output=outputs.nc1,
                nc1_kept_output=outputs.nc1_kept,
                cdnv_output=outputs.cdnv,
                tcv_output=outputs.tcv,
                tcv_relative_output=outputs.tcv_relative,
                nearest_mean_mismatch_output=(
                    None if pushed is None else nearest_mean_mismatch(pushed, labels, predictions)
                ),
                stable_rank=stable_rank(own),
                effective_rank=effective_rank(own),
                numerical_rank=numerical_rank(own),
                stable_rank_data=stable_rank(data),
                effective_rank_data=effective_rank(data),
                numerical_rank_data=numerical_rank(data),
                stationarity=cosine,
                implied_decay=decay,
            )
        )
    return tuple(measured)


def stationarity(weight: Tensor, loss: LossGradient) -> tuple[float | None, float | None]:
    """Return cos(W, −∇L) and −⟨W, ∇L⟩/‖W‖² of one layer.

    At a critical point of L + λ/2 ‖W‖² the gradient is −λW, so that the cosine is 1 and the second
    figure λ (Zangrando et al., arXiv 2402.03991, from which the rank of W is bounded by collapse).
    Otherwise the second is the λ whose critical point W is nearest to, for it minimises ‖∇L + λW‖.

    Args:
        weight: W [m, n].
        loss: The calibration loss's gradient in W.

    Returns:
        None for what is undefined: either matrix is zero.
    """
    gradient = loss.mean.to(weight)
    inner = float((weight * gradient).sum())
    norm, slope = float(weight.norm()), float(gradient.norm())
    if norm == 0:
        return None, None
    return (-inner / (norm * slope) if slope > 0 else None), -inner / norm**2


def agreement(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return on what share of samples two models predict alike, and the mean KL in nats.

    Args:
        before: Logits of the first model [N, C].
        after: Logits of the second on the same samples.
    """
    first, second = before.double().log_softmax(1), after.double().log_softmax(1)
    divergence = (first.exp() * (first - second)).sum(1).mean()
    alike = (first.argmax(1) == second.argmax(1)).double().mean()
    return float(alike), max(float(divergence), 0.0)


def change(before: Tensor, after: Tensor) -> float | None:
    """Return ‖B − A‖_F/‖A‖_F of two matrices [m, n]; None where A is zero."""
    size = float(before.double().norm())
    return float((after.double() - before.double()).norm()) / size if size else None


def _pushed(weight: Tensor, covariance: Tensor) -> Tensor:
    """Return W Σ Wᵀ [m, m]: the covariance of the layer's output."""
    return weight @ covariance @ weight.T
