"""How much a compressed model loses on the samples that both saw, and how sure that is.

Both models predict the same samples, so only those that they treat differently speak of a loss:
an interval of the paired difference is far narrower than those of either model alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compressor.evaluation.metrics.metric import Metric, Predictions

RESAMPLES = 1000


@dataclass(frozen=True)
class Loss:
    """A loss of quality, positive where the compressed model is worse, and its interval.

    In shares (0.01 is a point) or nats, as the metric is.
    """

    value: float
    low: float
    high: float


def paired_loss(
    metric: Metric, dense: Predictions, compressed: Predictions, *, level: float, seed: int = 0
) -> Loss | None:
    """Return what the compressed model loses against the dense one.

    For shares of successes (top-k): the interval of Agresti & Min, "Simple improved confidence
    intervals for comparing matched proportions", Statistics in Medicine 24 (2005), 729-740: Wald's,
    after half a sample is added to each cell of McNemar's table, so that few disagreements do not
    pass for certainty. For other metrics: a percentile interval of the paired bootstrap (Efron &
    Tibshirani, An Introduction to the Bootstrap, 1993), the same resampled samples for both.

    Args:
        metric: What is compared.
        dense: The dense model's predictions.
        compressed: The compressed model's, of the same samples.
        level: Confidence of the interval, in (0, 1).
        seed: Seed of the bootstrap.

    Returns:
        The loss; None where the metric has no meaning on these samples.

    Raises:
        ValueError: If the samples are not the same.
    """
    if not np.array_equal(dense.labels, compressed.labels):
        raise ValueError("the two models' predictions are of different samples")
    every = np.ones(len(dense.labels))
    before, after = metric.value(dense, every), metric.value(compressed, every)
    if before is None or after is None:
        return None
    sign = 1.0 if metric.rises else -1.0
    value = sign * (before - after)
    if metric.per_sample is not None:
        lost = int((metric.per_sample(dense) & ~metric.per_sample(compressed)).sum())
        won = int((~metric.per_sample(dense) & metric.per_sample(compressed)).sum())
        low, high = matched_interval(lost, won, len(dense.labels), level=level)
        return Loss(value, min(low, value), max(high, value))
    generator = np.random.default_rng(seed)
    samples = len(every)
    drawn = []
    for _ in range(RESAMPLES):
        weights = np.bincount(generator.integers(samples, size=samples), minlength=samples)
        pair = (metric.value(found, weights.astype(float)) for found in (dense, compressed))
        first, second = pair
        assert first is not None
        assert second is not None
        drawn.append(sign * (first - second))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Loss(value, min(float(low), value), max(float(high), value))


def matched_interval(lost: int, won: int, samples: int, *, level: float) -> tuple[float, float]:
    """Return the interval of (lost − won)/samples of Agresti & Min (2005), section 3.

    Args:
        lost: Samples on which the first model alone succeeds.
        won: Samples on which the second alone does.
        samples: All samples.
        level: Confidence.
    """
    total = samples + 2
    difference = (lost - won) / total
    spread = np.sqrt((lost + won + 1) - (lost - won) ** 2 / total) / total
    reach = NormalDist().inv_cdf((1 + level) / 2) * spread
    return float(difference - reach), float(difference + reach)
