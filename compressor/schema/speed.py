"""Time and memory of both models."""

from __future__ import annotations

from compressor.schema.strict import Strict


class LatencyFigures(Strict):
    """Time and memory of one forward at a batch size, both models in turn.

    Args:
        batch: Samples of the batch.
        rounds: Forwards of each that the medians are of.
        dense: Milliseconds of the dense model's forward.
        compressed: Milliseconds of the compressed one's.
        dense_memory: Bytes of the dense model's weights and of activations alive at once.
        compressed_memory: The same of the compressed one.
    """

    batch: int
    rounds: int
    dense: float
    compressed: float
    dense_memory: int
    compressed_memory: int


class LayerTime(Strict):
    """Milliseconds of one layer by itself, dense and as two thin products at its rank."""

    name: str
    rank: int
    dense: float
    compressed: float


class SpeedFigures(Strict):
    """How fast both models are on this device.

    Args:
        runtime: What both ran in.
        threads: Threads that torch had.
        input: Size of one batch, as counted and timed.
        batches: Figures at each batch size.
        layers: Each factorized layer by itself at the largest batch size, where the compressed
            model is not clearly faster there: what holds it up.
        notes: What was left out, and why.
    """

    runtime: str
    threads: int
    input: str
    batches: tuple[LatencyFigures, ...]
    layers: tuple[LayerTime, ...] = ()
    notes: tuple[str, ...] = ()
