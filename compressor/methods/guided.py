"""``nc1``, the default method: a small grid of recipes, the best on held-out data.

No single rule wins on every network, so every recipe of the grid is allocated the same budget and
judged by its KL to the dense model on selection data that no statistic came from, the most
promising first and the others as far as it takes to see that they have lost. The grid always
contains unguided recipes: what NC1 guidance gained or lost is in the report.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from compressor.layers.candidates import ConvForm
from compressor.methods.constraints import Constraints
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS, Decision
from compressor.methods.metrics import Needs
from compressor.methods.recipe import Recipe
from compressor.methods.select import Trials
from compressor.methods.sharing import allocate
from compressor.progress import Progress
from compressor.tokens import TokenForward

METRIC_GRID = (
    Recipe(metric="fisher"),
    Recipe(metric="shrunk_fisher"),
    Recipe(metric="mixed_fisher"),
)
"""With gradients, the metric is chosen first; energies are losses and compare across layers."""

WEIGHT_GRID = (
    {"layer_weight": "root"},
    {"layer_weight": "relative"},
    {"layer_weight": "guided", "beta": 0.25},
    {"layer_weight": "root", "beta": 0.25},
)
"""Then, in the best metric, how the budget is shared between the layers."""

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
    conv_form: ConvForm = "auto"
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

        With gradients, the metric is chosen before the layers' weights, and of the best another one
        is made, whose factors are refitted in sequence. Without selection data the grid's first
        recipe is taken.
        """
        grid = metric_grid(measurement) if measurement.gradients else FORWARD_GRID
        if measurement.selection is None:
            recipe = grid[0]
            return Decision(allocate(measurement, recipe, constraints, multiple=multiple), recipe)
        trials = Trials(measurement)
        steps: list[Callable[[], None]] = [
            *(partial(trials.begin, recipe, constraints, multiple=multiple) for recipe in grid),
            trials.settle,
        ]
        if measurement.gradients:
            steps += [
                *(
                    partial(trials.begin_weighted, weights, constraints, multiple=multiple)
                    for weights in WEIGHT_GRID
                ),
                trials.settle,
            ]
        if measurement.gradients and measurement.refits:
            steps.append(trials.add_refitted)
        for step in progress.track(steps, description="select", total=len(steps)):
            step()
        return trials.decision()


def metric_grid(measurement: Measurement) -> tuple[Recipe, ...]:
    """Return the metrics to choose from.

    Where tokens are predicted each is a sample of one row, and what rows would add is there. The
    Fisher as it is fits its corpus, which held-out windows are of too: they prefer it, and another
    text does not (SmolLM2-135M at 60 % of its layers' parameters, KL .757 on held-out windows and
    perplexity 2.34 times the dense model's on another book; shrunk .762 and 2.21).
    """
    if isinstance(measurement.forward, TokenForward):
        return (Recipe(metric="shrunk_fisher"),)
    return METRIC_GRID


METHODS.register("nc1")(Guided())
