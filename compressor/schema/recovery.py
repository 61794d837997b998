"""What training after the truncation did."""

from __future__ import annotations

from compressor.schema.data import SplitFigures
from compressor.schema.quality import QualityFigures
from compressor.schema.strict import Strict


class RecoveryFigures(Strict):
    """What `--recover` did, and the figures without it.

    Args:
        steps: Steps of training taken.
        best_step: Step whose factors were kept; 0 keeps those from before.
        data: The samples that were learnt from.
        labels: Whether their labels taught beside the dense model.
        kl_before: Mean KL to the dense model on the selection data before, in nats.
        kl_after: The same with the factors that were kept.
        without: How it fared on the test data before: the training-free result.
    """

    steps: int
    best_step: int
    data: SplitFigures
    labels: bool
    kl_before: float | None
    kl_after: float | None
    without: QualityFigures
