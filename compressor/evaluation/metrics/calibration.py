"""``calibration-error``: how far the model's confidence lies from its accuracy."""

from __future__ import annotations

import numpy as np

from compressor.evaluation.metrics.metric import METRICS, Floats, Metric, Predictions

BINS = 15


def calibration_error(found: Predictions, weights: Floats) -> float:
    """Return the expected calibration error over 15 bins of equal width of the confidence.

    Σ_b (n_b/N) |accuracy_b − confidence_b|: Guo, Pleiss, Sun and Weinberger, "On Calibration of
    Modern Neural Networks", ICML 2017, equation 3.
    """
    confidence = np.exp(found.top.astype(np.float64))
    # Bins are (a, b], as in the paper: a confidence of exactly 1 belongs to the last.
    index = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(index, weights * (found.correct - confidence), BINS)
    return float(np.abs(gaps).sum() / weights.sum())


METRICS.register("calibration-error")(
    Metric("calibration-error", "calibration error", "points", False, calibration_error)
)
