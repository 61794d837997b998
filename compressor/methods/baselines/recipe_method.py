"""A method that is one recipe: a metric, a layer weight and an allocation, with no choice."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.methods.constraints import Constraints
from compressor.methods.measurement import Measurement
from compressor.methods.method import Decision
from compressor.methods.metrics import METRICS, Needs
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import allocate
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
        self,
        measurement: Measurement,
        constraints: Constraints,
        *,
        multiple: int,
        progress: Progress,
    ) -> Decision:
        """Allocate under the recipe."""
        ranks = allocate(measurement, self.recipe, constraints, multiple=multiple)
        return decided(measurement, ranks, self.recipe, progress=progress)


def decided(
    measurement: Measurement, ranks: dict[str, int], recipe: Recipe, *, progress: Progress
) -> Decision:
    """Return the decision for ranks, with the BatchNorm correction settled on held-out data."""
    made, settled = measurement.factorized(ranks, recipe, progress=progress)
    measurement.keep(ranks, settled, made)
    return Decision(ranks, settled)
