"""What `compare` prints."""

from __future__ import annotations

from compressor.schema.measurement import MeasuredLayer, MeasurementReport
from compressor.schema.strict import Strict


class LayerChange(Strict):
    """One layer that two checkpoints share.

    Args:
        name: Module name.
        weight_change: ‖W_B − W_A‖_F/‖W_A‖_F; None where W_A is zero.
        before: The layer in the first checkpoint.
        after: The layer in the second.
    """

    name: str
    weight_change: float | None
    before: MeasuredLayer
    after: MeasuredLayer


class ComparisonReport(Strict):
    """What `compare` prints.

    Args:
        before: The first checkpoint, and the data; its layers are in ``layers``.
        after: The second checkpoint, on the same samples.
        layers: Layers of the same name and shape in both, in the first one's forward order.
        agreement: Share of the calibration samples on which both predict alike; None where tokens
            are predicted.
        kl: Mean KL(first ‖ second) there, in nats.
        only_before: Layers that only the first has.
        only_after: Layers that only the second has.
        notes: What a person should know.
        seconds: Time of each stage.
    """

    before: MeasurementReport
    after: MeasurementReport
    layers: tuple[LayerChange, ...]
    agreement: float | None
    kl: float | None
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: dict[str, float]
