"""report.json of a compression.

``REPORT_VERSION`` rises when a key changes its meaning or goes; new keys may appear without.
"""

from __future__ import annotations

from compressor.schema.budgets import BudgetFigures, Trial
from compressor.schema.data import DataFigures
from compressor.schema.frontier import PredictedFrontier
from compressor.schema.layers import DenseLayer, LayerFigures
from compressor.schema.losses import PairedLoss
from compressor.schema.quality import ModelFigures
from compressor.schema.recovery import RecoveryFigures
from compressor.schema.selection import Choice
from compressor.schema.speed import SpeedFigures
from compressor.schema.strict import Strict

REPORT_VERSION = 1

REPORT_FILE = "report.json"
"""Name of the report in a saved directory."""


class Report(Strict):
    """report.json of one compression.

    ``compressed`` is what was saved; where factors were trained, ``recovery`` holds the figures
    from before. ``job`` is the hash of the job of a batch that made it.
    """

    version: int = REPORT_VERSION
    model: str
    framework: str
    modality: str | None = None
    model_sha256: str | None
    method: str
    budget: tuple[str, ...]
    seed: int
    device: str
    command: str | None
    created: str
    versions: dict[str, str]
    data: DataFigures
    dense: ModelFigures
    compressed: ModelFigures
    layers: tuple[LayerFigures, ...]
    left_dense: tuple[DenseLayer, ...]
    selection: tuple[Choice, ...] = ()
    budgets: tuple[BudgetFigures, ...] = ()
    unmet: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    losses: tuple[PairedLoss, ...] = ()
    frontier: PredictedFrontier | None = None
    speed: SpeedFigures | None = None
    norm_correction: bool | None = None
    recovery: RecoveryFigures | None = None
    seconds: dict[str, float]
    out: str
    job: str | None = None
    notes: tuple[str, ...] = ()
