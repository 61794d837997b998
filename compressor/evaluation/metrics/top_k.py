"""``top-1`` and ``top-5``: share of samples whose true class is among the k likeliest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressor.evaluation.metrics.metric import METRICS, Floats, Metric, Predictions


def top_1(found: Predictions, weights: Floats) -> float:
    """Return the share of samples whose likeliest class is the true one: accuracy."""
    return float(np.average(found.correct, weights=weights))


def within_5(found: Predictions) -> NDArray[np.bool_]:
    """Return whether fewer than 5 other classes are likelier than the true one, [N]."""
    true = np.take_along_axis(found.log_probabilities, found.labels[:, None], 1)
    likelier: NDArray[np.bool_] = (found.log_probabilities > true).sum(1) < 5
    return likelier


def top_5(found: Predictions, weights: Floats) -> float | None:
    """Return top-5 accuracy; None with 5 classes or fewer, where it is always 1."""
    if found.log_probabilities.shape[1] <= 5:
        return None
    return float(np.average(within_5(found), weights=weights))


METRICS.register("top-1")(
    Metric("top-1", "accuracy", "points", True, top_1, lambda found: found.correct)
)
METRICS.register("top-5")(Metric("top-5", "top-5 accuracy", "points", True, top_5, within_5))
