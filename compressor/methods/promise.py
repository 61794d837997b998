"""``drop=``: the smallest model that keeps a promise about its quality.

The share of the layers' weights is bisected; each trial is one evaluation on the selection data,
from statistics and decompositions that are there already. A promise is kept where the upper end of
the paired interval of the loss lies within it: a one-sided test at 95 %. So neither is noise taken
for loss, as both models see the same samples, nor luck for quality. Of models that predict tokens
the samples are windows. The test data has no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.errors import DataError
from compressor.evaluation.loop import Evaluation
from compressor.evaluation.paired import Loss, paired_loss, share_loss
from compressor.methods.allocation import ALLOCATORS
from compressor.methods.budget import Budget, smallest
from compressor.methods.budgets.drop import AGREEMENT, metric_of, most
from compressor.methods.constraints import Constraint, Constraints, costs_of_weights
from compressor.methods.measurement import Measurement
from compressor.methods.method import Decision, Method
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import MEASURED, allocate
from compressor.progress import Progress
from compressor.schema import PromisedLoss, Trial

TRIALS = 8
"""Evaluations of the promise on the selection data, at most."""

LEVEL = 0.9
"""Two-sided: each end is one-sided at 95 %."""

FINEST = 0.004
"""Shares of the layers' weights that are closer than this are not told apart."""


@dataclass(frozen=True)
class Search:
    """What the search for the smallest model came to.

    Args:
        decision: Ranks and recipe of the smallest model that keeps the promises; where none does,
            of the one that came first.
        trials: Every evaluation, in order.
        unmet: A sentence where no model keeps them.
    """

    decision: Decision
    trials: tuple[Trial, ...]
    unmet: tuple[str, ...] = ()


def keep_promises(
    measurement: Measurement,
    method: Method,
    promises: Sequence[Budget],
    constraints: Constraints,
    *,
    multiple: int,
    progress: Progress,
) -> Search:
    """Find the smallest model that keeps every promise, and to the constraints.

    The method decides its recipe once, at the first share; from there on that recipe shares the
    budget. With constraints beside the promises, the largest model that they allow comes first: if
    it breaks a promise, none keeps all.

    Args:
        measurement: The dense model, measured, with selection data.
        method: How ranks are chosen.
        promises: Budgets of the kind ``drop``.
        constraints: What else the layers may cost; may be empty.
        multiple: Ranks are multiples of this.
        progress: Told of each trial.

    Raises:
        DataError: If there is no selection data, or a promise needs labels and there are none.
    """
    judge = _Judge(measurement, promises)
    candidates = measurement.candidates
    floor = smallest(candidates, multiple=multiple) / candidates.layer_parameters
    low, high = floor, 1.0
    recipe: Recipe | None = None
    best: Decision | None = None
    first: Decision | None = None
    trials: list[Trial] = []
    # One at least: where no multiple is a rank below break-even, it is the dense model.
    while not trials or (len(trials) < TRIALS and high - low > FINEST):
        share = 1.0 if constraints.members and not trials else (low + high) / 2
        within = _at_share(measurement, constraints, share)
        if recipe is None:
            decision = method.decide(measurement, within, multiple=multiple, progress=progress)
        else:
            decision = decide_again(
                method, measurement, within, recipe, multiple=multiple, progress=progress
            )
        first = first or decision
        model, settled = measurement.factorized(decision.ranks, decision.recipe)
        decision = Decision(decision.ranks, settled, first.selection)
        recipe = settled
        kept = sum(layer.cost(decision.ranks[name]) for name, layer in candidates.layers.items())
        trial = judge.trial(measurement.judge(model), kept / candidates.layer_parameters)
        trials.append(trial)
        progress.note(_told(trial, len(trials)))
        if trial.kept:
            best, high = decision, min(high, share)
            measurement.keep(decision.ranks, decision.recipe, model)
        elif share == 1.0 and constraints.members:
            return Search(decision, tuple(trials), (_broken(trial, promises),))
        else:
            low = share
    if best is None:
        assert first is not None
        dense = {name: layer.full_rank for name, layer in candidates.layers.items()}
        best = Decision(dense, first.recipe, first.selection)
    return Search(best, tuple(trials))


class _Judge:
    """Judges compressed models by what they lose of each promised metric."""

    def __init__(self, measurement: Measurement, promises: Sequence[Budget]) -> None:
        dense = measurement.dense_selection
        if dense is None:
            raise DataError(
                "A drop= budget is judged on held-out selection samples, and there are none. Give "
                "more data."
            )
        self._promises = promises
        self._dense = dense

    def trial(self, found: Evaluation, share: float) -> Trial:
        """Return how a model that keeps a share of the layers' weights fares."""
        losses = []
        for budget in self._promises:
            metric = metric_of(budget)
            loss = self._agreement(found) if budget.at == AGREEMENT else self._loss(budget, found)
            if loss is None:
                raise DataError(
                    f"The budget {budget} cannot be judged on the selection data: {metric.title} "
                    "has no meaning on it, or it is a single window. Give more data."
                )
            losses.append(
                PromisedLoss(
                    budget=str(budget),
                    metric=budget.at or metric.name,
                    unit=metric.unit,
                    most=most(budget),
                    value=loss.value,
                    low=loss.low,
                    high=loss.high,
                )
            )
        kept = all(loss.high <= loss.most + 1e-12 or loss.unchanged for loss in losses)
        return Trial(share=share, losses=tuple(losses), kept=kept)

    def _agreement(self, found: Evaluation) -> Loss | None:
        """Return the share of samples that the models differ on: the dense one is always right."""
        alike = found.classes == self._dense.classes
        windows = None if found.predictions is None else found.predictions.windows
        return share_loss(np.ones_like(alike), alike, windows=windows, level=LEVEL)

    def _loss(self, budget: Budget, found: Evaluation) -> Loss | None:
        if self._dense.predictions is None or found.predictions is None:
            raise DataError(
                f"The budget {budget} needs labels, and the data has none. "
                f"drop={budget.amount:g}@{AGREEMENT} does without: it asks how often both models "
                "predict alike."
            )
        metric = metric_of(budget)
        return paired_loss(metric, self._dense.predictions, found.predictions, level=LEVEL)


def decide_again(
    method: Method,
    measurement: Measurement,
    constraints: Constraints,
    recipe: Recipe,
    *,
    multiple: int,
    progress: Progress,
) -> Decision:
    """Return the ranks under other constraints by a recipe that is settled already.

    Losses corrected by measurement hold at the ranks they were measured at: elsewhere the recipe
    shares by its metric alone. A method whose allocation is its own rule decides anew.
    """
    if recipe.allocation == MEASURED:
        recipe = recipe.model_copy(update={"allocation": "knapsack"})
    if recipe.allocation in ALLOCATORS.names():
        return Decision(allocate(measurement, recipe, constraints, multiple=multiple), recipe)
    return method.decide(measurement, constraints, multiple=multiple, progress=progress)


def _at_share(measurement: Measurement, constraints: Constraints, share: float) -> Constraints:
    layers = measurement.candidates.layers
    costs = costs_of_weights(layers, dict.fromkeys(layers, 1.0))
    limit = float(int(share * measurement.candidates.layer_parameters + 1e-9))
    return Constraints((*constraints.members, Constraint(f"layers={share:.4f}", costs, limit)))


def _told(trial: Trial, number: int) -> str:
    losses = ", ".join(f"{loss.metric} {loss.text}" for loss in trial.losses)
    verdict = "kept" if trial.kept else "broken"
    place = f"trial {number} of at most {TRIALS}, {trial.share:.1%} of the layers' weights"
    return f"{place}: loss of {losses}: {verdict}"


def _broken(trial: Trial, promises: Sequence[Budget]) -> str:
    broken = [
        f"The budget {budget} cannot be met together with the others: the largest model that they "
        f"allow loses {loss.text} of {loss.metric} on the selection data."
        for budget, loss in zip(promises, trial.losses, strict=True)
        if loss.high > loss.most
    ]
    return " ".join(broken)
