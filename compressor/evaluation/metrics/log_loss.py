"""``log-loss``: mean cross entropy of the true class, in nats."""

from __future__ import annotations

import numpy as np

from compressor.evaluation.metrics.metric import METRICS, Floats, Metric, Predictions


def log_loss(found: Predictions, weights: Floats) -> float:
    """Return the mean of −log p of the true class."""
    true = np.take_along_axis(found.log_probabilities, found.labels[:, None], 1)[:, 0]
    return float(-np.average(true, weights=weights))


METRICS.register("log-loss")(Metric("log-loss", "cross entropy", "nats", False, log_loss))
