"""What truncating each layer alone costs, and everything that might have told so beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from compressor.evaluation.loop import Evaluation, evaluate
from compressor.figures import Loaded
from compressor.forward import Batch, Batches
from compressor.gathering import gather
from compressor.measuring import measured_layers
from compressor.methods.factorize import factorized
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe
from compressor.progress import SILENT, Progress
from compressor.schema import MeasuredLayer

TRUNCATION = Recipe(metric="covariance", norm_correction=False)
"""Layers are truncated for their outputs' reconstruction: no label and no gradient has a part."""

COLLAPSE = ("nc1_quotient", "nc1", "cdnv", "tcv_relative", "nearest_mean_mismatch")
"""Metrics of collapse, each of a layer's input and, ending in ``_output``, of its output."""

Figures = dict[str, float | None]


@dataclass(frozen=True)
class LayerCost:
    """One layer truncated alone.

    Args:
        name: Module name.
        rank: Rank it was truncated to.
        kl: KL from the dense model on the test samples, in nats.
        accuracy: Accuracy there.
        predictors: What was known before: collapse, ranks, energies, by name.
        shuffled: Collapse when the calibration labels are exchanged at random, by name.
    """

    name: str
    rank: int
    kl: float
    accuracy: float | None
    predictors: Figures
    shuffled: Figures


@dataclass(frozen=True)
class Shuffled:
    """Batches whose labels, of samples or of tokens, are exchanged over all batches."""

    batches: Batches
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        """Yield (inputs, exchanged labels); what predicts nothing stays so."""
        given = [labels for _, labels in self.batches if labels is not None]
        flat = torch.cat([labels.flatten() for labels in given])
        known = torch.nonzero(flat >= 0).flatten()
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(self.seed))
        flat[known] = flat[known[order]]
        parts = iter(torch.split(flat, [labels.numel() for labels in given]))
        for inputs, labels in self.batches:
            yield inputs, None if labels is None else next(parts).reshape(labels.shape)


def layer_costs(
    found: Measurement,
    loaded: Loaded,
    dense: Evaluation,
    *,
    share: float,
    most: int | None,
    progress: Progress,
) -> list[LayerCost]:
    """Truncate one layer after the other to a share of its weights.

    Args:
        found: Measured with gradients.
        loaded: Model and data.
        dense: The dense model on the test data.
        share: Share of its weights that each layer keeps.
        most: Layers to take at most, evenly spaced; None takes all.
        progress: Told of each layer.
    """
    measured = {layer.name: layer for layer in measured_layers(found)}
    mixed = {layer.name: layer for layer in measured_layers(_with_shuffled_labels(found, loaded))}
    names = _spread(list(measured), most)
    costs = []
    for name in progress.track(names, description="truncate", total=len(names)):
        layer = found.candidates.layers[name]
        rank = max(1, int(share * layer.parameters / sum(layer.shape)))
        small = factorized(
            found.model, found.candidates.layers, {name: rank}, TRUNCATION, found.decompositions
        )
        after = evaluate(small, loaded.data.test, forward=found.forward, dense_logits=dense.logits)
        assert after.kl_to_dense is not None
        costs.append(
            LayerCost(
                name=name,
                rank=rank,
                kl=after.kl_to_dense,
                accuracy=after.accuracy,
                predictors={
                    "depth": float(list(measured).index(name)),
                    "parameters": float(layer.parameters),
                    **_collapse(measured[name]),
                    "stable_rank": measured[name].stable_rank,
                    "effective_rank": measured[name].effective_rank,
                    "stable_rank_data": measured[name].stable_rank_data,
                    "effective_rank_data": measured[name].effective_rank_data,
                    "spectral_energy_lost": _lost(found, name, rank, Recipe(metric="identity")),
                    "data_energy_lost": _lost(found, name, rank, TRUNCATION),
                    "fisher": _tail(found, name, rank, Recipe(metric="fisher")),
                },
                shuffled=_collapse(mixed[name]),
            )
        )
    return costs


def _with_shuffled_labels(found: Measurement, loaded: Loaded) -> Measurement:
    statistics = gather(
        found.model,
        Shuffled(found.calibration, found.seed),
        found.candidates,
        classes=len(loaded.data.class_names) or None,
        forward=found.forward,
        gradients=False,
        seed=found.seed,
        progress=SILENT,
    )
    return Measurement(
        model=found.model,
        candidates=found.candidates,
        statistics=statistics,
        calibration=found.calibration,
        selection=None,
        forward=found.forward,
        gradients=False,
        seed=found.seed,
    )


def _collapse(layer: MeasuredLayer) -> Figures:
    told = layer.model_dump()
    return {key: told[key] for name in COLLAPSE for key in (name, f"{name}_output")}


def _tail(found: Measurement, name: str, rank: int, recipe: Recipe) -> float:
    """Return what truncation to a rank loses in a metric; of the Fisher's, nats of KL times 2."""
    return float(found.decompositions.get(name, recipe).decomposition.tail()[rank])


def _lost(found: Measurement, name: str, rank: int, recipe: Recipe) -> float:
    tail = found.decompositions.get(name, recipe).decomposition.tail()
    return float(tail[rank] / tail[0])


def _spread(names: list[str], most: int | None) -> list[str]:
    if most is None or len(names) <= most:
        return names
    return [names[(2 * at + 1) * len(names) // (2 * most)] for at in range(most)]
