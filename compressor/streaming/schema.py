"""What `compress --stream` tells of what it made."""

from __future__ import annotations

from compressor.schema import (
    REPORT_VERSION,
    Choice,
    DataFigures,
    DenseLayer,
    QualityFigures,
    Strict,
)


class StreamedLayer(Strict):
    """One layer of a checkpoint that was compressed in parts."""

    name: str
    kind: str
    shape: tuple[int, int]
    rank: int
    full_rank: int
    parameters: int


class StreamReport(Strict):
    """stream.json: what `compress --stream` made.

    Args:
        parameters: Of the dense model.
        compressed_parameters: Of the one that was written.
        layer_share: Share of the candidate layers' parameters that was kept.
        bytes: Size of the dense weight files.
        compressed_bytes: Size of those that were written.
        units: Parts that were in memory one after the other.
        largest_unit: Parameters of the largest.
        data: What was measured and evaluated on; None where only weights were looked at.
        dense: How the dense model fares on the test windows; None without data.
        compressed: The same of the one that was written.
        selection: Recipes that were judged on held-out windows.
    """

    version: int = REPORT_VERSION
    model: str
    method: str
    budget: tuple[str, ...]
    command: str | None
    created: str
    versions: dict[str, str]
    parameters: int
    compressed_parameters: int
    layer_share: float
    bytes: int
    compressed_bytes: int
    units: int
    largest_unit: int
    data: DataFigures | None = None
    dense: QualityFigures | None = None
    compressed: QualityFigures | None = None
    layers: tuple[StreamedLayer, ...]
    left_dense: tuple[DenseLayer, ...]
    selection: tuple[Choice, ...] = ()
    unmet: tuple[str, ...] = ()
    seconds: dict[str, float]
    out: str
    notes: tuple[str, ...] = ()
