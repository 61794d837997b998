"""Whole models at equal budgets: guided by NC1, unguided, and guided by NC1 of other layers."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.controls import permuted
from compressor.evaluation.loop import Evaluation, evaluate
from compressor.figures import Loaded
from compressor.methods.budget import granted, parse_budget
from compressor.methods.guided import allocate
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe
from compressor.progress import Progress
from compressor.stages import subject_of

PAIRS = {
    "forward pass only": (
        Recipe(layer_weight="relative", norm_correction=False),
        Recipe(layer_weight="relative", beta=0.25, norm_correction=False),
        Recipe(layer_weight="relative", beta=0.5, norm_correction=False),
    ),
    "with the Fisher": (
        Recipe(metric="fisher", norm_correction=False),
        Recipe(metric="fisher", layer_weight="guided", beta=0.25, norm_correction=False),
    ),
}
"""For either sort of pass the unguided recipe, and the guided ones that are compared with it."""


@dataclass(frozen=True)
class WholeModel:
    """One recipe at one budget.

    Args:
        sort: What was allowed.
        budget: As written.
        beta: Strength of guidance, 0 for none.
        control: Whether every layer got the NC1 of another one.
        seed: Of the split into calibration and selection.
        kl: KL from the dense model on the test samples, in nats.
        accuracy: Accuracy there.
    """

    sort: str
    budget: str
    beta: float
    control: bool
    seed: int
    kl: float
    accuracy: float | None


def whole_models(
    found: Measurement,
    loaded: Loaded,
    dense: Evaluation,
    budgets: tuple[str, ...],
    progress: Progress,
) -> list[WholeModel]:
    """Compress a model by every recipe at every budget."""
    exchanged = permuted(found)
    todo = [
        (sort, budget, recipe, control)
        for budget in budgets
        for sort, recipes in PAIRS.items()
        for recipe in recipes
        for control in ((False, True) if recipe.beta else (False,))
    ]
    results = []
    for sort, budget, recipe, control in progress.track(
        todo, description="whole models", total=len(todo)
    ):
        allowed = granted([parse_budget(budget)], subject_of(found)).constraints
        ranks = allocate(exchanged if control else found, recipe, allowed, multiple=1)
        small, _ = found.factorized(ranks, recipe)
        after = evaluate(small, loaded.data.test, forward=found.forward, dense_logits=dense.logits)
        assert after.kl_to_dense is not None
        results.append(
            WholeModel(
                sort,
                budget,
                recipe.beta,
                control,
                found.seed,
                after.kl_to_dense,
                after.accuracy,
            )
        )
    return results
