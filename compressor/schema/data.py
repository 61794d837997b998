"""The data of a run."""

from __future__ import annotations

from compressor.schema.strict import Strict


class SplitFigures(Strict):
    """Size and content hash of one split."""

    samples: int
    sha256: str


class DataFigures(Strict):
    """The data of a run."""

    reference: str
    classes: int
    calibration: SplitFigures
    selection: SplitFigures
    test: SplitFigures
    notes: tuple[str, ...] = ()
