"""What a compression predicts for other budgets than the one it was given."""

from __future__ import annotations

from typing import Literal

from compressor.schema.strict import Strict


class FrontierPoint(Strict):
    """One allocation.

    Args:
        share: Weights kept of the layers that can be factorized.
        loss: What it is predicted to lose, in the unit of the frontier.
    """

    share: float
    loss: float


class PredictedFrontier(Strict):
    """Loss over the share of the layers' weights, as the recipe of a run predicts it: not measured.

    Args:
        unit: ``nats`` of KL from the dense model where the metric is made of its predictions'
            gradients; otherwise ``energy``, what the recipe weighs layers by, without a scale.
        smallest: Smallest share that ranks can reach.
        run: The run itself, at the ranks that it took.
        points: Allocations by the same recipe, ascending shares from the smallest to 1.
    """

    unit: Literal["nats", "energy"]
    smallest: float
    run: FrontierPoint
    points: tuple[FrontierPoint, ...]
