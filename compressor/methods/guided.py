"""``nc1``, the default method: a small grid of recipes, the best on held-out data.

No single rule wins on every network, so every recipe of the grid is allocated the same budget and
judged by its KL to the dense model on selection data that no statistic came from. The grid always
contains unguided recipes: what NC1 guidance gained or lost is in the report.
"""

from __future__ import annotations

from compressor.methods.allocation import ALLOCATORS, options
from compressor.methods.constraints import Constraints
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS, Decision
from compressor.methods.metrics import LAYER_WEIGHTS, Needs
from compressor.methods.recipe import Recipe
from compressor.progress import Progress
from compressor.schema import Choice

GRADIENT_GRID = (
    Recipe(metric="fisher"),
    Recipe(metric="shrunk_fisher"),
    Recipe(metric="fisher", layer_weight="root"),
    Recipe(metric="fisher", layer_weight="relative"),
    Recipe(metric="fisher", layer_weight="guided", beta=0.25),
    Recipe(metric="fisher", layer_weight="root", beta=0.25),
)

FORWARD_GRID = (
    Recipe(allocation="uniform"),
    Recipe(metric="second_moment", allocation="uniform"),
    Recipe(layer_weight="relative"),
    Recipe(layer_weight="relative", beta=0.25),
    Recipe(layer_weight="relative", beta=0.5),
    Recipe(alpha="nc1", allocation="uniform"),
    Recipe(alpha="nc1", layer_weight="relative", beta=0.25),
)


class Guided:
    """NC1-guided allocation and class-aware metric, chosen on held-out data."""

    name = "nc1"
    source = (
        "Zangrando et al., arXiv 2402.03991 (collapse and rank); two-sided Fisher metric as in "
        "GFWSVD, arXiv 2505.17974, of the model's own predictions"
    )

    def needs(self, *, gradients: bool) -> Needs:
        """A backward pass where gradients are allowed, else one forward pass."""
        return "gradients" if gradients else "forward"

    def decide(
        self,
        measurement: Measurement,
        constraints: Constraints,
        *,
        multiple: int,
        progress: Progress,
    ) -> Decision:
        """Allocate the budget under each recipe and keep the best on the selection data.

        Without selection data the grid's first recipe is taken.
        """
        grid = GRADIENT_GRID if measurement.gradients else FORWARD_GRID
        if measurement.selection is None:
            recipe = grid[0]
            return Decision(allocate(measurement, recipe, constraints, multiple=multiple), recipe)
        tried: list[tuple[Choice, Decision]] = []
        for open_recipe in progress.track(grid, description="select", total=len(grid)):
            ranks = allocate(measurement, open_recipe, constraints, multiple=multiple)
            found, model = measurement.judged(ranks, open_recipe)
            recipe = found.recipe
            choice = Choice(
                label=label(recipe),
                kl=found.kl,
                accuracy=found.accuracy,
                guided=recipe.guided,
                chosen=False,
            )
            if model is not None and all(choice.kl < other.kl for other, _ in tried):
                measurement.keep(ranks, recipe, model)
            tried.append((choice, Decision(ranks, recipe)))
        best = min(range(len(tried)), key=lambda i: (tried[i][0].kl, -(tried[i][0].accuracy or 0)))
        selection = tuple(
            choice.model_copy(update={"chosen": index == best})
            for index, (choice, _) in enumerate(tried)
        )
        decision = tried[best][1]
        return Decision(decision.ranks, decision.recipe, selection)


def allocate(
    measurement: Measurement, recipe: Recipe, constraints: Constraints, *, multiple: int
) -> dict[str, int]:
    """Return the ranks that a recipe gives within what the candidates may cost together."""
    layers = {}
    for name, layer in measurement.candidates.layers.items():
        tail = measurement.decompositions.get(name, recipe).decomposition.tail()
        weight = LAYER_WEIGHTS.get(recipe.layer_weight)(
            measurement.layers.get(name), float(tail[0]), recipe
        )
        losses = (tail * weight).cpu().numpy()
        layers[name] = options(layer, losses, constraints, multiple=multiple)
    return ALLOCATORS.get(recipe.allocation)(layers, constraints.limits)


def label(recipe: Recipe) -> str:
    """Return a recipe in a few words, for tables."""
    parts = [recipe.metric.replace("_", " ")]
    if recipe.alpha != 1:
        parts.append(f"α={'q/(1+q)' if recipe.alpha == 'nc1' else recipe.alpha}")
    if recipe.allocation != "knapsack":
        parts.append(recipe.allocation)
    elif recipe.layer_weight != "one":
        parts.append(recipe.layer_weight)
    if recipe.beta > 0:
        parts.append(f"β={recipe.beta:g}")
    return ", ".join(parts)


METHODS.register("nc1")(Guided())
