"""``log-loss``: mean cross entropy of the true class, in nats; ``perplexity``: its exponential."""

from __future__ import annotations

import numpy as np

from compressor.evaluation.metrics.metric import METRICS, Floats, Metric, Predictions

LARGEST_EXPONENT = 700.0
"""exp of more does not fit a float64."""


def log_loss(found: Predictions, weights: Floats) -> float:
    """Return the mean of −log p of the true class."""
    return float(-np.average(found.true.astype(np.float64), weights=weights))


def perplexity(found: Predictions, weights: Floats) -> float:
    """Return exp of the mean of −log p of the true token, at most what a float64 can hold."""
    return float(np.exp(min(log_loss(found, weights), LARGEST_EXPONENT)))


METRICS.register("log-loss")(Metric("log-loss", "cross entropy", "nats", False, log_loss))
METRICS.register("perplexity")(
    Metric("perplexity", "perplexity", "percent", False, perplexity, of=("tokens",))
)
