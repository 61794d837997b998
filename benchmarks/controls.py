"""Taking the collapse out of NC1: two ways of giving a method NC1 values that mean nothing.

Both leave the layers' metrics and energies as they were measured, so that only guidance changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from compressor.collapse.capture import Statistics
from compressor.collapse.metrics import nc1_quotient
from compressor.collapse.moments import ClassMoments
from compressor.collapse.watch import LayerStatistics
from compressor.forward import Batch, Batches
from compressor.layers.candidates import Candidate
from compressor.methods.factorize import Decompositions
from compressor.methods.measurement import Measurement
from compressor.methods.metrics import SMALLEST_ALPHA, Truncation
from compressor.methods.recipe import Recipe

UNCHANGED = ""
PERMUTED = "NC1 permuted"
SHUFFLED = "labels shuffled"
CONTROLS = (PERMUTED, SHUFFLED)


@dataclass(frozen=True)
class ShuffledLabels:
    """Batches whose labels are exchanged between samples, over all batches.

    Every class keeps its number of samples; which samples they are is chance.

    Args:
        batches: The batches themselves, all labelled.
        seed: Seed of the exchange.
    """

    batches: Batches
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        """Yield (inputs, exchanged labels [B])."""
        given = [labels for _, labels in self.batches if labels is not None]
        labels = torch.cat(given)
        mixed = labels[
            torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        ]
        parts = iter(torch.split(mixed, [len(part) for part in given]))
        for inputs, known in self.batches:
            yield inputs, None if known is None else next(parts)


def permuted(measurement: Measurement) -> Measurement:
    """Return the measurement with each layer's NC1 values taken from another layer."""
    statistics = _known(measurement)
    donors = donors_of(list(statistics.layers), seed=measurement.seed)
    layers = {
        name: replace(found, outputs=statistics.layers[donors[name]].outputs)
        for name, found in statistics.layers.items()
    }
    alphas = {name: _alpha(statistics.layers[donors[name]].inputs) for name in statistics.layers}
    shared = measurement.decompositions

    def get(forms: Forms, name: str, recipe: Recipe) -> Truncation:
        alpha = alphas[name] if recipe.alpha == "nc1" else recipe.alpha
        return shared.of(forms).get(name, recipe.model_copy(update={"alpha": alpha}))

    return _with(measurement, layers, get)


def with_shuffled_labels(measurement: Measurement, shuffled: Statistics) -> Measurement:
    """Return the measurement with class moments from a pass over shuffled labels.

    Args:
        measurement: Under the true labels.
        shuffled: From a forward pass over the same samples with `ShuffledLabels`.
    """
    layers = {
        name: replace(
            found, inputs=shuffled.layers[name].inputs, outputs=shuffled.layers[name].outputs
        )
        for name, found in _known(measurement).layers.items()
    }
    shared = measurement.decompositions
    own = Decompositions(measurement.model, measurement.candidates.layers, layers)

    def get(forms: Forms, name: str, recipe: Recipe) -> Truncation:
        # At α = 1 the classes add up to the total covariance, whatever the labels.
        return (shared if recipe.alpha == 1.0 else own).of(forms).get(name, recipe)

    return _with(measurement, layers, get)


def donors_of(names: list[str], *, seed: int) -> dict[str, str]:
    """Return for each layer another one, every layer once; a single layer is its own."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    while len(names) > 1 and bool((order == np.arange(len(names))).any()):
        order = rng.permutation(len(names))
    return {name: names[index] for name, index in zip(names, order, strict=True)}


Forms = Mapping[str, Candidate]


class _Redirected(Decompositions):
    """Decompositions that come from elsewhere.

    Args:
        layers: The candidates in the forms that are asked for.
        get: From these, a layer's name and a recipe to its decomposition.
    """

    def __init__(self, layers: Forms, get: Callable[[Forms, str, Recipe], Truncation]) -> None:
        self._layers, self._get = layers, get

    def get(self, name: str, recipe: Recipe) -> Truncation:
        """Return one layer's decomposition in the recipe's metric."""
        return self._get(self._layers, name, recipe)


def _with(
    measurement: Measurement,
    layers: Mapping[str, LayerStatistics],
    get: Callable[[Forms, str, Recipe], Truncation],
) -> Measurement:
    changed = replace(measurement, statistics=replace(_known(measurement), layers=dict(layers)))
    share_caches(measurement, changed)
    vars(changed)["decompositions"] = _Redirected(measurement.candidates.layers, get)
    return changed


def share_caches(source: Measurement, copy: Measurement) -> None:
    """Let a copy of a measurement use what the first one has computed once for all."""
    vars(copy)["decompositions"] = source.decompositions
    vars(copy)["dense_selection"] = source.dense_selection


def _alpha(moments: ClassMoments) -> float:
    """Return q/(1 + q) of a layer's own collapse q, as the metric takes it for ``"nc1"``."""
    quotient = nc1_quotient(moments)
    if quotient is None or quotient == float("inf"):
        return 1.0
    return max(quotient / (1 + quotient), SMALLEST_ALPHA)


def _known(measurement: Measurement) -> Statistics:
    if measurement.statistics is None:
        raise ValueError("a control needs statistics; measure with a method that gathers them")
    return measurement.statistics
