"""How much a compressed model loses on the samples that both saw, and how sure that is.

Both models predict the same samples, so only those that they treat differently speak of a loss:
an interval of the paired difference is far narrower than those of either model alone. What is drawn
anew by a bootstrap is what is independent: samples, or where tokens are predicted whole windows,
as one window's tokens succeed and fail together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compressor.evaluation.metrics.metric import Booleans, Floats, Integers, Metric, Predictions

RESAMPLES = 1000


@dataclass(frozen=True)
class Loss:
    """A loss of quality, positive where the compressed model is worse, and its interval.

    In shares (0.01 is a point, or a percent) or nats, as the metric's unit is.
    """

    value: float
    low: float
    high: float


def paired_loss(
    metric: Metric, dense: Predictions, compressed: Predictions, *, level: float, seed: int = 0
) -> Loss | None:
    """Return what the compressed model loses against the dense one.

    For shares of successes (top-k): `share_loss`. For other metrics: an interval of the paired
    bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993), the same resampled
    samples, or windows of tokens, for both.

    Args:
        metric: What is compared.
        dense: The dense model's predictions.
        compressed: The compressed model's, of the same samples.
        level: Confidence of the interval, in (0, 1).
        seed: Seed of the bootstrap.

    Returns:
        The loss; None where the metric has no meaning on these samples, or one sample (or window)
        is all there is.

    Raises:
        ValueError: If the samples are not the same.
    """
    if not np.array_equal(dense.labels, compressed.labels):
        raise ValueError("the two models' predictions are of different samples")
    before, after = metric.score(dense), metric.score(compressed)
    if before is None or after is None:
        return None
    if metric.success is not None:
        pair = metric.success(dense), metric.success(compressed)
        return share_loss(*pair, windows=dense.windows, level=level, seed=seed)

    def lost(weights: Floats) -> float:
        first, second = metric.score(dense, weights), metric.score(compressed, weights)
        assert first is not None
        assert second is not None
        return _lost(metric, first, second)

    ends = _bootstrap(lost, _units(dense.windows, len(dense.labels)), level=level, seed=seed)
    return None if ends is None else _around(_lost(metric, before, after), ends)


def share_loss(
    dense: Booleans,
    compressed: Booleans,
    *,
    windows: Integers | None = None,
    level: float,
    seed: int = 0,
) -> Loss | None:
    """Return how much smaller the compressed model's share of successes is.

    Of independent samples the interval is that of Agresti & Min, "Simple improved confidence
    intervals for comparing matched proportions", Statistics in Medicine 24 (2005), 729-740: Wald's,
    after half a sample is added to each cell of McNemar's table, so that few disagreements do not
    pass for certainty. Of tokens it is that of a bootstrap of whole windows (Davison & Hinkley,
    Bootstrap Methods and their Application, 1997, section 3.8), and at least the former.

    Args:
        dense: Whether the dense model succeeds on each sample, [N].
        compressed: Whether the compressed one does.
        windows: Of tokens, the number of the window that each lies in, [N].
        level: Confidence of the interval, in (0, 1).
        seed: Seed of the bootstrap.

    Returns:
        The loss; None where all tokens are of one window.
    """
    differences = dense.astype(np.float64) - compressed
    lost, won = int((differences > 0).sum()), int((differences < 0).sum())
    low, high = matched_interval(lost, won, len(differences), level=level)
    if windows is not None:

        def mean(weights: Floats) -> float:
            return float(np.average(differences, weights=weights))

        ends = _bootstrap(mean, _units(windows, len(differences)), level=level, seed=seed)
        if ends is None:
            return None
        low, high = min(low, ends[0]), max(high, ends[1])
    return _around(float(differences.mean()), (low, high))


def _lost(metric: Metric, before: float, after: float) -> float:
    lost = before - after if metric.rises else after - before
    return lost / before if metric.unit == "percent" else lost


def _around(value: float, ends: tuple[float, float]) -> Loss:
    return Loss(value, min(ends[0], value), max(ends[1], value))


def _units(windows: Integers | None, samples: int) -> Integers:
    """Return the number [N] of the independent unit that each sample belongs to, from 0 on."""
    if windows is None:
        return np.arange(samples)
    units: Integers = np.unique(windows, return_inverse=True)[1]
    return units


def _bootstrap(
    statistic: Callable[[Floats], float], units: Integers, *, level: float, seed: int
) -> tuple[float, float] | None:
    """Return a percentile interval of a statistic of weights [N], whole units drawn anew.

    The percentiles are those that make up for a bootstrap's narrowness with few units: Hesterberg,
    "What Teachers Should Know About the Bootstrap", The American Statistician 69 (2015), 371-386,
    section 5.3. None where there are fewer than two units.
    """
    from scipy.stats import t

    count = int(units.max()) + 1
    if count < 2:
        return None
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(generator.integers(count, size=count), minlength=count)
        drawn.append(statistic(times.astype(np.float64)[units]))
    reach = np.sqrt(count / (count - 1)) * float(t.ppf((1 + level) / 2, count - 1))
    tail = NormalDist().cdf(-reach)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


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
