"""What `evaluate` prints."""

from __future__ import annotations

from pydantic import Field

from compressor.schema.strict import Strict


class TaskFigures(Strict):
    """One task of the lm-evaluation-harness: its metrics by name, as the harness computes them."""

    task: str
    metrics: dict[str, float]
    samples: int | None
    version: str | None


class EvaluationReport(Strict):
    """What `evaluate` prints; without data the figures of the data are None, ``tasks`` stand."""

    accuracy: float | None
    loss: float | None
    samples: int | None
    sha256: str | None
    model: str
    framework: str
    parameters: int
    bytes: int | None
    flops: int | None
    seconds: float
    perplexity: float | None = None
    byte_perplexity: float | None = None
    tokens: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    tasks: tuple[TaskFigures, ...] = ()
    notes: tuple[str, ...] = ()
