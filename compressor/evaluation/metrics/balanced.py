"""``balanced-accuracy``: mean of the accuracies of the classes, rare ones counting alike."""

from __future__ import annotations

import numpy as np

from compressor.evaluation.metrics.metric import METRICS, Floats, Metric, Predictions


def balanced_accuracy(found: Predictions, weights: Floats) -> float:
    """Return the mean recall over the classes that occur, as scikit-learn has it.

    Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.
    """
    samples = np.bincount(found.labels, weights)
    correct = np.bincount(found.labels, weights * found.correct)
    seen = samples > 0
    return float((correct[seen] / samples[seen]).mean())


METRICS.register("balanced-accuracy")(
    Metric(
        "balanced-accuracy",
        "balanced accuracy",
        "points",
        True,
        balanced_accuracy,
        of=("classes",),
    )
)
