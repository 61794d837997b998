"""``aimet``: greedy ratios from the accuracy measured when each layer alone is truncated.

Source: AIMET's greedy compression-ratio selection (AIMET user guide, "Greedy compression ratio
selection"; Kuzmin et al., "Taxonomy and evaluation of structured compression of convolutional
neural networks", arXiv 1912.09802). First each layer is truncated by plain SVD to each
of 10 ratios, 0.1 … 1, all others dense, and the whole model's accuracy is measured; 1 is the dense
model. Then the same accuracy is asked of every layer: each takes its cheapest option that keeps
it, and the highest accuracy at which the budget holds is found by bisection.

Accuracy is measured on at most 256 samples of the selection data, for a language model on as few
windows as predict 256 tokens: 9 evaluations a layer, and fewer ratios a layer where that were more
than 400 in all (never less than one a layer). Between the ratios measured it is interpolated
linearly, and taken for 0 where nothing is kept.

Differs: layers take any rank and not one of ten (AIMET interpolates too, by bisecting between
candidates); accuracies on few samples tie, so what the last step of accuracy leaves of the budget
is spent by moving all layers the same part of the way to it; the ratio is of weights, AIMET's also
of operations; its monotonic fit is off by default and left out; so is fine-tuning. Without labels
the agreement with the dense model is the accuracy; without selection data calibration data is used.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from compressor.evaluation.loop import evaluate
from compressor.forward import Batch, Batches, Inputs, batch_length
from compressor.layers.candidates import Candidate
from compressor.methods.allocation import Options, options
from compressor.methods.baselines.recipe_method import decided
from compressor.methods.constraints import Constraints, Floats
from compressor.methods.factorize import factorized
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS, Decision
from compressor.methods.metrics import Needs
from compressor.methods.recipe import Recipe
from compressor.progress import Progress

RATIOS = 10
"""Ratios 1/10 … 1; the last is the dense model and needs no evaluation."""

MOST_EVALUATIONS = 400
"""With more layers than this allows, fewer ratios are measured a layer."""

MOST_SAMPLES = 256
"""Samples that an accuracy is measured on; the tokens predicted in a window are samples."""


class Greedy:
    """Measured accuracy of each layer and ratio, and one accuracy asked of all layers."""

    name = "aimet"
    source = (
        "AIMET, greedy compression-ratio selection; arXiv 1912.09802: measured accuracy "
        "of each layer and ratio, the same accuracy asked of all"
    )
    recipe = Recipe(metric="identity", allocation="aimet")

    def needs(self, *, gradients: bool) -> Needs:
        """The weights alone; accuracies are measured when ranks are chosen."""
        del gradients
        return "weights"

    def decide(
        self,
        measurement: Measurement,
        constraints: Constraints,
        *,
        multiple: int,
        progress: Progress,
    ) -> Decision:
        """Measure each layer at each ratio, then choose."""
        layers = {
            name: options(layer, np.zeros(layer.full_rank + 1), constraints, multiple=multiple)
            for name, layer in measurement.candidates.layers.items()
        }
        scores = self._scores(measurement, layers, progress)
        ranks = greedy(layers, scores, constraints.limits)
        return decided(measurement, ranks, self.recipe, progress=progress)

    def _scores(
        self, measurement: Measurement, layers: Mapping[str, Options], progress: Progress
    ) -> dict[str, Floats]:
        """Return the accuracy at each layer's options, interpolated between measured ones."""
        if measurement.selection is None:
            progress.note("No selection data: accuracies are measured on calibration data.")
        batches = head(measurement.selection or measurement.calibration)
        dense = evaluate(measurement.model, batches, forward=measurement.forward)
        trials = [
            (name, rank)
            for name, choice in layers.items()
            for rank in probes(measurement.candidates.layers[name], choice, len(layers))
        ]
        measured: dict[str, dict[int, float]] = {name: {} for name in layers}
        for name, rank in progress.track(trials, description="probe layers", total=len(trials)):
            model = factorized(
                measurement.model,
                measurement.candidates.layers,
                {name: rank},
                self.recipe,
                measurement.decompositions,
            )
            found = evaluate(model, batches, forward=measurement.forward, dense_logits=dense.logits)
            score = found.agreement if found.accuracy is None else found.accuracy
            assert score is not None
            measured[name][rank] = score
        best = 1.0 if dense.accuracy is None else dense.accuracy
        return {name: interpolated(layers[name], measured[name], best) for name in layers}


def probes(layer: Candidate, choice: Options, layers: int) -> list[int]:
    """Return the ranks to measure in one layer, ascending, none of them dense.

    Args:
        layer: The layer.
        choice: Its options.
        layers: Number of layers that share the evaluations.
    """
    count = min(RATIOS - 1, max(MOST_EVALUATIONS // max(layers, 1), 1))
    ratios = np.arange(1, count + 1) / (count + 1)
    within = np.searchsorted(choice.weights[:-1], ratios * layer.parameters, side="right") - 1
    return sorted({int(choice.ranks[index]) for index in within.clip(min=0)} - {layer.full_rank})


def interpolated(choice: Options, measured: Mapping[int, float], dense: float) -> Floats:
    """Return the accuracy at every option, linear in its weights between the measured ones.

    Args:
        choice: The layer's options.
        measured: Accuracy by rank.
        dense: Accuracy of the dense model.
    """
    known = [int(np.searchsorted(choice.ranks, rank)) for rank in sorted(measured)]
    weights = [0.0, *choice.weights[known], choice.weights[-1]]
    scores = [0.0, *(measured[int(choice.ranks[index])] for index in known), dense]
    found: Floats = np.interp(choice.weights, weights, scores)
    return found


def greedy(
    layers: Mapping[str, Options], scores: Mapping[str, Floats], limits: Floats | float
) -> dict[str, int]:
    """Return the ranks at the highest accuracy that can be asked of every layer alike.

    Args:
        layers: Each layer's options.
        scores: Accuracy of the whole model at each of them, that layer alone truncated.
        limits: Limits [c] of what the layers may cost together.
    """

    def asked(score: float) -> dict[str, int]:
        return {
            name: int(np.argmax(values >= score)) if values.max() >= score else len(values) - 1
            for name, values in scores.items()
        }

    levels = np.unique(np.concatenate([[0.0], *scores.values()]))
    low, high = 0, len(levels)  # asked(levels[0]) is the cheapest model; past the end is dense
    while high - low > 1:
        middle = (low + high) // 2
        within = _within(layers, asked(levels[middle]), limits)
        low, high = (middle, high) if within else (low, middle)
    chosen = asked(levels[low])
    above = (
        asked(levels[high])
        if high < len(levels)
        else {name: len(option.ranks) - 1 for name, option in layers.items()}
    )
    chosen = _part_of_the_way(layers, chosen, above, limits)
    return {name: int(layers[name].ranks[index]) for name, index in chosen.items()}


def _part_of_the_way(
    layers: Mapping[str, Options],
    start: Mapping[str, int],
    end: Mapping[str, int],
    limits: Floats | float,
) -> dict[str, int]:
    """Move all layers the same part of the way between two choices, as far as the budget holds."""

    def at(part: float) -> dict[str, int]:
        return {name: start[name] + int(part * (end[name] - start[name])) for name in start}

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        within = _within(layers, at(middle), limits)
        low, high = (middle, high) if within else (low, middle)
    return at(low)


def _within(
    layers: Mapping[str, Options], chosen: Mapping[str, int], limits: Floats | float
) -> bool:
    costs = sum(layers[name].costs[:, index] for name, index in chosen.items())
    return bool(np.all(costs <= limits))


def head(batches: Batches) -> list[Batch]:
    """Return the first samples, or as many of the first windows as predict so many tokens.

    Args:
        batches: With labels [B], or [B, T], negative where no token is predicted; or without.
    """
    kept: list[Batch] = []
    missing = MOST_SAMPLES
    for inputs, labels in batches:
        made = torch.ones(batch_length(inputs), dtype=torch.int64)
        if labels is not None and labels.ndim > 1:
            made = (labels >= 0).sum(1)
        before = made.cumsum(0) - made
        size = int((before < missing).sum())
        kept.append((_cut(inputs, size), None if labels is None else labels[:size]))
        missing -= int(made[:size].sum())
        if missing <= 0:
            break
    return kept


def _cut(inputs: Inputs, size: int) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs[:size]
    if isinstance(inputs, tuple):
        return tuple(value[:size] for value in inputs)
    return {key: value[:size] for key, value in inputs.items()}


METHODS.register(Greedy.name)(Greedy())
