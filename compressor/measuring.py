"""Collapse and rank of every candidate layer, as `measure` reports them."""

from __future__ import annotations

from torch import Tensor

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
    mismatch = {
        group: nearest_mean_mismatch(pooled, statistics.labels, predictions)
        for group, pooled in statistics.pooled.items()
    }
    measured = []
    for name, found in statistics.layers.items():
        layer = found.layer
        weight = LAYER_KINDS.get(layer.kind).matrix(modules[name]).double()
        weight = weight.to(found.inputs.means.device)
        inputs = collapse(found.input_classes)
        # Where rare tokens stand apart, Σ_W of the classes alone is known by its trace only.
        spread = None if found.rest else _pushed(weight, found.inputs.within_covariance)
        outputs = collapse(found.output_classes, spread)
        own = singular_values(weight)
        data = singular_values(weight, found.inputs.total_covariance)
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
                cdnv_output=outputs.cdnv,
                stable_rank=stable_rank(own),
                effective_rank=effective_rank(own),
                numerical_rank=numerical_rank(own),
                stable_rank_data=stable_rank(data),
                effective_rank_data=effective_rank(data),
                numerical_rank_data=numerical_rank(data),
            )
        )
    return tuple(measured)


def _pushed(weight: Tensor, covariance: Tensor) -> Tensor:
    """Return W Σ Wᵀ [m, m]: the covariance of the layer's output."""
    return weight @ covariance @ weight.T
