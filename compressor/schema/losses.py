"""What a compressed model loses beside the dense one, on the same samples."""

from __future__ import annotations

from typing import Literal

from compressor.schema.strict import Strict


class PairedLoss(Strict):
    """What a compressed model loses of one metric, on the samples that both models saw.

    Args:
        metric: Registered name, or ``agreement``.
        unit: ``points`` of figures that are shares, ``nats``, or ``percent`` of the dense model's.
        value: The loss, positive where the compressed model is worse; a share, or nats.
        low: Lower end of its interval.
        high: Upper end.
    """

    metric: str
    unit: Literal["points", "nats", "percent"]
    value: float
    low: float
    high: float

    @property
    def unchanged(self) -> bool:
        """Whether nothing was lost and nothing could be."""
        return self.value == self.low == self.high == 0

    @property
    def text(self) -> str:
        """The loss and its interval, in its unit."""
        scale = 1 if self.unit == "nats" else 100
        value, low, high = (
            f"{scale * number:.3g}".replace("-", "−")
            for number in (self.value, self.low, self.high)
        )
        return f"{value} {'%' if self.unit == 'percent' else self.unit} ({low} … {high})"
