"""What a plan means for each layer: collapse, bound and actual loss side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from compressor.collapse.metrics import cdnv, energy_bound, nc1, nc1_quotient
from compressor.collapse.spectra import singular_values
from compressor.collapse.watch import LayerStatistics
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.methods.decompose import weighted_error
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe
from compressor.schema import LayerFigures, Spectrum

SPECTRUM_POINTS = 64


def layer_figures(
    measurement: Measurement,
    ranks: Mapping[str, int],
    compressed: nn.Module | None = None,
    recipe: Recipe | None = None,
) -> tuple[LayerFigures, ...]:
    """Return the figures of every candidate, in forward order.

    Args:
        measurement: What was measured on the dense model.
        ranks: Rank by layer name.
        compressed: The factorized model, whose actual loss is then told too.
        recipe: The recipe it was factorized by, whose spectra are then told too.
    """
    modules = dict(measurement.model.named_modules())
    replaced = {} if compressed is None else dict(compressed.named_modules())
    figures = []
    for name, layer in measurement.candidates.layers.items():
        weight = LAYER_KINDS.get(layer.kind).matrix(modules[name]).double()
        rank = layer.kept(ranks.get(name, layer.full_rank))  # a plan may leave a layer out
        statistics = measurement.layers.get(name)
        collapsed = None
        if statistics is not None and not statistics.rest:
            collapsed = nc1(statistics.inputs, statistics.inputs.within_covariance)[0]
        figures.append(
            LayerFigures(
                name=name,
                kind=layer.kind,
                shape=layer.shape,
                rank=rank,
                full_rank=layer.full_rank,
                break_even_rank=layer.break_even_rank,
                parameters=layer.cost(rank),
                nc1_quotient=None if statistics is None else nc1_quotient(statistics.input_classes),
                nc1=collapsed,
                cdnv=None if statistics is None else cdnv(statistics.input_classes),
                nc1_quotient_output=None
                if statistics is None
                else nc1_quotient(statistics.output_classes),
                bound=None if statistics is None else _bound(statistics, weight, rank),
                energy_lost=_lost(statistics, weight, replaced.get(name)),
                spectrum=None if recipe is None else _spectrum(measurement, name, recipe),
            )
        )
    return tuple(figures)


def _spectrum(measurement: Measurement, name: str, recipe: Recipe) -> Spectrum | None:
    """Return a layer's singular values at positions of equal ratio; None for a zero matrix."""
    values = measurement.decompositions.get(name, recipe).decomposition.energies.sqrt()
    if not float(values[0]) > 0:
        return None
    steps = np.geomspace(1, len(values), SPECTRUM_POINTS)
    ranks = sorted({round(float(step)) for step in steps})
    shares = (values / values[0])[[rank - 1 for rank in ranks]]
    return Spectrum(
        metric=recipe.metric,
        ranks=tuple(ranks),
        values=tuple(float(f"{share:.4g}") for share in shares.tolist()),
    )


def _bound(statistics: LayerStatistics, weight: Tensor, rank: int) -> float | None:
    """Return the share of output energy that collapse alone allows ``rank`` to lose."""
    weight = weight.to(statistics.inputs.means.device)
    if statistics.counts is not None:  # its outputs are the rows that were measured
        weight = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    if rank >= min(weight.shape):
        return 0.0
    within = singular_values(weight, statistics.inputs.within_covariance).square()
    between = singular_values(statistics.inputs.between_factor @ weight.T).square()
    return energy_bound(within, between, rank)


def _lost(
    statistics: LayerStatistics | None, weight: Tensor, replaced: nn.Module | None
) -> float | None:
    """Return tr((W−Ŵ) Σ_T (W−Ŵ)ᵀ)/tr(W Σ_T Wᵀ), the share of output energy that was lost."""
    if statistics is None or replaced is None:
        return None
    if not isinstance(replaced, LOW_RANK_TYPES):
        return 0.0
    up, down = LAYER_KINDS.get(replaced.kind).factors(replaced)
    device = statistics.inputs.means.device
    weight = weight.to(device)
    difference = weight - up.to(device).double() @ down.to(device).double()
    if statistics.counts is not None:
        lost = float((difference.square() * statistics.counts).sum())
        return lost / max(float((weight.square() * statistics.counts).sum()), 1e-300)
    metric = statistics.inputs.total_covariance
    energy = weighted_error(weight, metric, None)
    return weighted_error(difference, metric, None) / energy if energy > 0 else None
