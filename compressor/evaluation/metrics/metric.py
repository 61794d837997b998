"""What a metric is, and the registry of metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compressor.registry import Registry

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """A model's class distributions on N samples beside the true classes.

    Args:
        log_probabilities: log p of each class, [N, C].
        labels: True classes [N].
    """

    log_probabilities: Floats
    labels: Integers

    @cached_property
    def classes(self) -> Integers:
        """The likeliest class of each sample, [N]."""
        found: Integers = self.log_probabilities.argmax(1)
        return found

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that is the true one, [N]."""
        found: NDArray[np.bool_] = self.classes == self.labels
        return found


@dataclass(frozen=True)
class Metric:
    """One way to score predictions.

    Args:
        name: Name it is registered under.
        title: What tables call it.
        unit: ``points`` of metrics in [0, 1], read in percent, or ``nats``.
        rises: Whether more is better.
        value: From predictions and the weight [N] of each sample to the score; None where it has no
            meaning. Weights serve the bootstrap: a sample drawn twice weighs two.
        per_sample: From predictions to whether each sample is a success [N], where the metric is
            the share of these.
    """

    name: str
    title: str
    unit: Literal["points", "nats"]
    rises: bool
    value: Callable[[Predictions, Floats], float | None]
    per_sample: Callable[[Predictions], NDArray[np.bool_]] | None = None


METRICS: Registry[Metric] = Registry(
    "quality metric", group="quality_metrics", modules=("compressor.evaluation.metrics",)
)


def predictions(logits: Tensor, labels: Tensor) -> Predictions:
    """Return predictions from logits [N, C] and labels [N], in float64."""
    return Predictions(
        logits.double().log_softmax(1).cpu().numpy(), labels.cpu().numpy().astype(np.int64)
    )


def scores(found: Predictions) -> dict[str, float]:
    """Return every registered metric that has a meaning on these predictions, by name."""
    weights = np.ones(len(found.labels))
    values = {name: metric.value(found, weights) for name, metric in METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}
