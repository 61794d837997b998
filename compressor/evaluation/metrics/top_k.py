"""``top-1`` and ``top-5``: share of samples whose true class is among the k likeliest."""

from __future__ import annotations

import numpy as np

from compressor.evaluation.metrics.metric import METRICS, Booleans, Floats, Metric, Predictions


def top_1(found: Predictions, weights: Floats) -> float:
    """Return the share of samples whose likeliest class is the true one: accuracy."""
    return float(np.average(found.correct, weights=weights))


def within_5(found: Predictions) -> Booleans:
    """Return whether fewer than 5 other classes are likelier than the true one, [N]."""
    within: Booleans = found.likelier < 5
    return within


def top_5(found: Predictions, weights: Floats) -> float | None:
    """Return top-5 accuracy; None with 5 classes or fewer, where it is always 1."""
    if found.width <= 5:
        return None
    return float(np.average(within_5(found), weights=weights))


METRICS.register("top-1")(
    Metric("top-1", "accuracy", "points", True, top_1, lambda found: found.correct)
)
METRICS.register("top-5")(Metric("top-5", "top-5 accuracy", "points", True, top_5, within_5))
