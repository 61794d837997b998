"""What `export` prints."""

from __future__ import annotations

from compressor.schema.strict import Strict


class ExportReport(Strict):
    """What `export` prints.

    Args:
        model: What was exported.
        to: The format.
        out: File or directory that was written.
        bytes: Its size.
        parameters: Parameters of the model.
        difference: Largest absolute difference between the written model's outputs and the ones in
            memory.
        tolerance: What was allowed.
        samples: Samples that both were compared on.
        seconds: Time to write and compare.
        notes: What a person should know.
    """

    model: str
    to: str
    out: str
    bytes: int
    parameters: int
    difference: float
    tolerance: float
    samples: int
    seconds: float
    notes: tuple[str, ...] = ()
