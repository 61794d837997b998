"""What a metric is, and the registry of metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compressor.registry import Registry

Floats: TypeAlias = NDArray[np.floating[Any]]
Integers: TypeAlias = NDArray[np.integer[Any]]
Booleans: TypeAlias = NDArray[np.bool_]

Kind = Literal["classes", "tokens"]
"""What is predicted: a class of each sample, or the tokens of a window."""


@dataclass(frozen=True)
class Predictions:
    """What a model predicts of N samples, as far as metrics ask: [N] each, never [N, C].

    Args:
        labels: True classes.
        classes: The likeliest class.
        true: log p of the true class, in nats.
        top: log p of the likeliest class, in nats.
        likelier: How many classes are likelier than the true one.
        width: Number of classes C.
        windows: Where samples are tokens, the number of the window that each lies in: tokens of one
            window are not independent. None where samples are.
    """

    labels: Integers
    classes: Integers
    true: Floats
    top: Floats
    likelier: Integers
    width: int
    windows: Integers | None = None

    @property
    def kind(self) -> Kind:
        """What is predicted."""
        return "classes" if self.windows is None else "tokens"

    @cached_property
    def correct(self) -> Booleans:
        """Whether the likeliest class is the true one, [N]."""
        found: Booleans = self.classes == self.labels
        return found


@dataclass(frozen=True)
class Metric:
    """One way to score predictions.

    Args:
        name: Name it is registered under.
        title: What tables call it.
        unit: What a loss of it is told in: ``points`` of metrics in [0, 1], ``nats``, or
            ``percent`` of the dense model's value.
        rises: Whether more is better.
        value: From predictions and the weight [N] of each sample to the score; None where it has no
            meaning. Weights serve the bootstrap: a sample drawn twice weighs two.
        success: From predictions to whether each sample is a success [N], where the metric is the
            share of these.
        of: What has to be predicted for it to have a meaning.
    """

    name: str
    title: str
    unit: Literal["points", "nats", "percent"]
    rises: bool
    value: Callable[[Predictions, Floats], float | None]
    success: Callable[[Predictions], Booleans] | None = None
    of: tuple[Kind, ...] = ("classes", "tokens")

    def score(self, found: Predictions, weights: Floats | None = None) -> float | None:
        """Return the score of weighted samples, None where the metric has no meaning on them."""
        if found.kind not in self.of:
            return None
        return self.value(found, np.ones(len(found.labels)) if weights is None else weights)


METRICS: Registry[Metric] = Registry(
    "quality metric", group="quality_metrics", modules=("compressor.evaluation.metrics",)
)


def predictions(logits: Tensor, labels: Tensor, windows: Tensor | None = None) -> Predictions:
    """Return predictions from logits [N, C], labels [N] and, of tokens, their windows [N].

    Probabilities are computed in float64.
    """
    return condensed(logits.double().log_softmax(1), labels, windows)


def condensed(
    log_probabilities: Tensor, labels: Tensor, windows: Tensor | None = None
) -> Predictions:
    """Return predictions from log p of every class [N, C], labels [N] and windows [N]."""
    true = log_probabilities.gather(1, labels[:, None])
    top, classes = log_probabilities.max(1)
    return Predictions(
        labels=labels.cpu().numpy(),
        classes=classes.cpu().numpy(),
        true=true[:, 0].cpu().numpy(),
        top=top.cpu().numpy(),
        likelier=(log_probabilities > true).sum(1).cpu().numpy(),
        width=log_probabilities.shape[1],
        windows=None if windows is None else windows.cpu().numpy(),
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of all parts, of which there is at least one, in their order."""
    windows = [part.windows for part in parts if part.windows is not None]
    return Predictions(
        labels=np.concatenate([part.labels for part in parts]),
        classes=np.concatenate([part.classes for part in parts]),
        true=np.concatenate([part.true for part in parts]),
        top=np.concatenate([part.top for part in parts]),
        likelier=np.concatenate([part.likelier for part in parts]),
        width=parts[0].width,
        windows=np.concatenate(windows) if windows else None,
    )


def scores(found: Predictions) -> dict[str, float]:
    """Return every registered metric that has a meaning on these predictions, by name."""
    values = {name: metric.score(found) for name, metric in METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}
