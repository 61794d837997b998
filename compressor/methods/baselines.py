"""Published rules that need nothing but a recipe, for comparison on the same work."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.methods.guided import allocate
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS, Decision
from compressor.methods.metrics import METRICS, Needs
from compressor.methods.recipe import Recipe
from compressor.progress import Progress


@dataclass(frozen=True)
class RecipeMethod:
    """A method that is one recipe.

    Args:
        name: Name it is registered under.
        source: Paper it comes from.
        recipe: What it does.
    """

    name: str
    source: str
    recipe: Recipe

    def needs(self, *, gradients: bool) -> Needs:
        """What the recipe needs; ``gradients`` has no say, for the recipe is what it is."""
        del gradients
        return METRICS.get(self.recipe.metric).needs

    def decide(
        self, measurement: Measurement, weights: int, *, multiple: int, progress: Progress
    ) -> Decision:
        """Allocate under the recipe."""
        ranks = allocate(measurement, self.recipe, weights, multiple=multiple)
        _, recipe = measurement.factorized(ranks, self.recipe, progress=progress)
        return Decision(ranks, recipe)


for method in (
    RecipeMethod(
        name="svd",
        source="Eckart & Young 1936: truncated SVD of the weights, the same share in every layer",
        recipe=Recipe(metric="identity", allocation="uniform"),
    ),
    RecipeMethod(
        name="whitened",
        source="SVD-LLM, arXiv 2403.07378: truncation-aware whitening, the same share in every "
        "layer",
        recipe=Recipe(metric="second_moment", allocation="uniform"),
    ),
):
    METHODS.register(method.name)(method)
