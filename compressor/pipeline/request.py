"""What is asked of a run, looked at before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from compressor.evaluation.runtimes.runtime import RUNTIMES
from compressor.forward import Task
from compressor.methods.budget import parse_budget
from compressor.methods.method import METHODS
from compressor.settings import DataSettings, MethodSettings, ModelSettings

SELECTION_TO_JUDGE = 2048
"""Held-out samples that a ``drop=`` budget is judged on, at most, where nothing else is said."""

WINDOWS_TO_JUDGE = 128
"""The same where samples are windows, of hundreds of predicted tokens each."""


def inputs_of(
    model: ModelSettings, data: DataSettings | None, plan: Path | None = None
) -> tuple[str | Path | None, ...]:
    """Return everything that a run reads, as it was named."""
    texts = () if data is None else (data.data, data.test_data)
    return model.model, model.checkpoint, model.factory, *texts, plan


def check_names(method: MethodSettings) -> None:
    """Refuse unknown names and unreadable budgets before anything is loaded."""
    METHODS.get(method.method)
    RUNTIMES.get(method.runtime)
    for budget in method.budget:
        parse_budget(budget)


def enough_to_judge(data: DataSettings, method: MethodSettings, task: Task) -> DataSettings:
    """Return data settings with selection samples enough to tell a point of accuracy.

    Only a ``drop=`` budget asks for that; the promise is judged by an interval that many samples
    make narrow.
    """
    asked = any(parse_budget(budget).kind == "drop" for budget in method.budget)
    if not asked or data.selection is not None:
        return data
    most = SELECTION_TO_JUDGE if task == "classification" else WINDOWS_TO_JUDGE
    return data.model_copy(update={"selection": most})
