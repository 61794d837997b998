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
        data: The samples that were there to learn from; None in reports of before there was this.
        labels: Whether their labels taught beside the dense model.
        kl_before: Mean KL to the dense model on the selection data before, in nats.
        kl_after: The same with the factors that were kept.
        without: How it fared on the test data before: the training-free result.
    """

    steps: int
    best_step: int
    data: SplitFigures | None = None
    labels: bool = False
    kl_before: float | None
    kl_after: float | None
    without: QualityFigures

    @property
    def teachers(self) -> str:
        """What was learnt from, in words."""
        taught = "predictions and the labels" if self.labels else "predictions"
        samples = "" if self.data is None else f" of {self.data.samples:,} samples"
        return f"the dense model's {taught}{samples}"
