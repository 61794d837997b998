"""sweep.json: what every point of a sweep is, and which ones stand out."""

from __future__ import annotations

from typing import Literal

from compressor.schema import DataFigures, ModelFigures, SpeedFigures, Strict

SWEEP_VERSION = 1

TOLERANCES = (0.005, 0.01, 0.02)
"""Losses of accuracy, as shares, within which the smallest model is named."""


class SweepPoint(Strict):
    """One budget under one method: the same figures that `compress` gives there.

    Args:
        method: Registered method.
        budget: Budget as written.
        plan: Path of its plan, relative to the sweep's directory.
        layer_share: Weights kept of the layers that can be factorized.
        parameter_share: Parameters kept of all.
        flops_share: FLOPs kept of one sample's forward.
        choice: The recipe that the method came to, in a few words.
        figures: Quality and cost; ``bytes`` is None, for no file was written.
        seconds: Spent on this point alone, by stage.
        speed: Time and memory of this point, timed in turn with the dense model.
    """

    method: str
    budget: str
    plan: str
    layer_share: float
    parameter_share: float
    flops_share: float
    choice: str
    figures: ModelFigures
    seconds: dict[str, float]
    speed: SpeedFigures | None = None

    @property
    def latency_share(self) -> float | None:
        """Time of a forward at the largest batch size that was timed, over the dense model's."""
        if self.speed is None or not self.speed.batches:
            return None
        last = self.speed.batches[-1]
        return last.compressed / last.dense


class Knee(Strict):
    """Where a method's curve bends most, as the plan of that point."""

    method: str
    plan: str


class Within(Strict):
    """The point with the fewest parameters whose loss stays within a tolerance.

    Args:
        tolerance: Largest loss, as a share.
        plan: Plan of that point; None where no point keeps to it.
    """

    tolerance: float
    plan: str | None


class Sweep(Strict):
    """sweep.json.

    Args:
        quality: What the points are compared by: accuracy, or agreement with the dense model where
            there are no labels.
        points: By method, from the largest budget to the smallest.
        knees: At most one a method.
        within: One for each of `TOLERANCES`, over all methods.
        seconds: Spent in this call by stage; points finished earlier cost nothing.
    """

    version: int = SWEEP_VERSION
    model: str
    framework: str
    model_sha256: str | None
    seed: int
    device: str
    command: str | None
    created: str
    versions: dict[str, str]
    data: DataFigures
    dense: ModelFigures
    quality: Literal["accuracy", "agreement"]
    points: tuple[SweepPoint, ...]
    knees: tuple[Knee, ...]
    within: tuple[Within, ...]
    seconds: dict[str, float]
    out: str
    notes: tuple[str, ...] = ()

    def quality_of(self, figures: ModelFigures) -> float:
        """Return what a model is compared by, as a share; the dense model agrees with itself."""
        value = figures.accuracy if self.quality == "accuracy" else figures.agreement
        return 1.0 if value is None else value
