"""What `plan` prints."""

from __future__ import annotations

from compressor.schema.budgets import BudgetFigures, Trial
from compressor.schema.layers import DenseLayer, LayerFigures
from compressor.schema.selection import Choice
from compressor.schema.strict import Strict


class PlanReport(Strict):
    """What `plan` prints beside the plan it writes."""

    model: str
    method: str
    budget: tuple[str, ...]
    path: str | None
    layer_share: float
    parameter_share: float
    layers: tuple[LayerFigures, ...]
    left_dense: tuple[DenseLayer, ...]
    selection: tuple[Choice, ...] = ()
    budgets: tuple[BudgetFigures, ...] = ()
    unmet: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
