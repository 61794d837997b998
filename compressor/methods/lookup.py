"""Truncating embeddings: their rows are one-hot, so that a metric on inputs is a list of weights.

With p_v the share of token v among the calibration tokens, the input metric of a table W [D, V] is
Σ = diag(p): rows that are looked up often count. Rows that were never seen count a little, by
additive smoothing (Lidstone; Manning & Schütze 1999, section 6.2.2). With gradients it is the
Fisher of `compressor.collapse.fisher`, whose factor on the inputs is diagonal too.

Where an output layer is tied to the table, the same W [D, V] is truncated for both uses at once.
Its Fisher is the sum of two Kronecker products, for which one is taken: that of their summed
factors, over the summed energies. It has the sum's trace.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.collapse.watch import LayerStatistics
from compressor.methods.decompose import decompose_on_smaller_side
from compressor.methods.metrics import METRICS, Truncation
from compressor.methods.recipe import Recipe

SMOOTHING = 0.05
"""Share of the input metric that every row of the table has an equal part in."""

SHRINKAGE = 0.1
"""Share of its mean eigenvalue that the output metric is raised by, where few tokens tell it."""

_Truncate = Callable[[Tensor, LayerStatistics | None, Recipe], Truncation]


def truncated_lookup(metric: str) -> _Truncate:
    """Return how an embedding is truncated in a metric of this name."""
    needs = METRICS.get(metric).needs
    if needs == "weights":
        return METRICS.get(metric).truncate
    return _by_fisher if needs == "gradients" else _by_frequency


def _by_frequency(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
    """diag(p) on the inputs; on the outputs the second moment of what a tied layer sees, or 1."""
    del recipe
    known = _known(statistics)
    assert known.counts is not None
    shares = (known.counts / known.counts.sum().clamp_min(1)).to(weight)
    pulled = _smoothed((weight * shares) @ weight.T, weight)
    if known.head is None:
        return Truncation(decompose_on_smaller_side(weight, None, pulled))
    mean = known.head.inputs.mean
    near = known.head.inputs.total_covariance + torch.outer(mean, mean)
    near = near * (len(near) / float(near.trace()) if float(near.trace()) > 0 else 0.0)
    near.diagonal().add_(1.0)
    # The output layer's rows count alike, each token being a row of its logits.
    return Truncation(
        decompose_on_smaller_side(weight, near, pulled + weight @ weight.T / weight.shape[1])
    )


def _by_fisher(weight: Tensor, statistics: LayerStatistics | None, recipe: Recipe) -> Truncation:
    """The Fisher of the lookups, and of the output layer that is tied to them."""
    del recipe
    known = _known(statistics)
    parts = [known.fisher, *([known.head.fisher] if known.head is not None else [])]
    found = [part for part in parts if part is not None]
    if not found:
        raise ValueError("the metric needs gradients, which were not gathered")
    energy = sum(part.energy for part in found)
    near = torch.stack([part.near for part in found]).sum(0)
    pulled = torch.stack([part.pulled for part in found]).sum(0)
    if energy <= 0:
        return Truncation(decompose_on_smaller_side(weight, near, pulled))
    near.diagonal().add_(SHRINKAGE * energy / len(near))
    return Truncation(decompose_on_smaller_side(weight, near, _smoothed(pulled / energy, weight)))


def _smoothed(pulled: Tensor, weight: Tensor) -> Tensor:
    """Return W Σ Wᵀ with `SMOOTHING` of Σ, whose trace is 1, spread over all rows of the table."""
    return (1 - SMOOTHING) * pulled + SMOOTHING * (weight @ weight.T) / weight.shape[1]


def _known(statistics: LayerStatistics | None) -> LayerStatistics:
    if statistics is None:
        raise ValueError("the metric needs statistics of the tokens that are looked up")
    return statistics
