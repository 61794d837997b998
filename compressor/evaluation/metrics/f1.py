"""``macro-f1``: mean over the classes of the harmonic mean of precision and recall."""

from __future__ import annotations

import numpy as np

from compressor.evaluation.metrics.metric import METRICS, Floats, Metric, Predictions


def macro_f1(found: Predictions, weights: Floats) -> float:
    """Return the mean of 2 TP / (samples + predicted) over classes that occur in either.

    A class that is never predicted rightly counts 0, as in scikit-learn's f1_score.
    """
    samples = np.bincount(found.labels, weights, found.width)
    predicted = np.bincount(found.classes, weights, found.width)
    correct = np.bincount(found.labels, weights * found.correct, found.width)
    seen = samples + predicted > 0
    return float((2 * correct[seen] / (samples + predicted)[seen]).mean())


METRICS.register("macro-f1")(
    Metric("macro-f1", "macro F1", "points", True, macro_f1, of=("classes",))
)
