"""Two models' figures side by side, as rows of text (pure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compressor.evaluation.metrics.metric import METRICS
from compressor.report.classes import interval_text
from compressor.report.figures import MISSING, count, figure, nats, percent, points, size
from compressor.report.speed import gain
from compressor.schema import ModelFigures, SpeedFigures

COUNTED: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("parameters", "parameters", count),
    ("layer_parameters", "in the factorizable layers", count),
    ("bytes", "bytes on disk", size),
    ("flops", "FLOPs a sample", count),
)
"""Field, label and form of what is compared as a share."""

OWN_ROWS = ("top-1", "log-loss")
"""Metrics that every report has a field of its own for: accuracy and loss."""

_SHOWN = {field for field, *_ in COUNTED} | {
    "accuracy",
    "loss",
    "kl_to_dense",
    "agreement",
    "per_class",
    "metrics",
}


@dataclass(frozen=True)
class Row:
    """One figure of both models as text; an interval is empty where there is none."""

    label: str
    dense: str
    compressed: str
    change: str
    dense_interval: str = ""
    compressed_interval: str = ""


def compare_models(dense: ModelFigures, compressed: ModelFigures, samples: int) -> list[Row]:
    """Return the rows of the table of before and after.

    Figures that a report may hold beside the usual ones come last, under their own names.

    Args:
        dense: The dense model.
        compressed: The compressed one.
        samples: Test samples that accuracies were counted on.
    """
    rows = []
    if dense.accuracy is not None and compressed.accuracy is not None:
        rows.append(
            Row(
                "accuracy",
                percent(dense.accuracy, 2),
                percent(compressed.accuracy, 2),
                f"{points(compressed.accuracy - dense.accuracy)} points",
                interval_text(dense.accuracy, samples),
                interval_text(compressed.accuracy, samples),
            )
        )
    if dense.loss is not None and compressed.loss is not None:
        rows.append(Row("cross entropy, nats", f"{dense.loss:.4f}", f"{compressed.loss:.4f}", ""))
    rows += _metric_rows(dense, compressed)
    for field, label, show in COUNTED:
        before, after = getattr(dense, field), getattr(compressed, field)
        rows.append(Row(label, show(before), show(after), _share(before, after)))
    rows.append(Row("same prediction as dense", "", percent(compressed.agreement, 2), ""))
    rows.append(Row("KL from dense, nats", "", nats(compressed.kl_to_dense), ""))
    for field in type(dense).model_fields:
        before, after = getattr(dense, field), getattr(compressed, field)
        if field not in _SHOWN and isinstance(after, int | float):
            shown = figure(before) if isinstance(before, int | float) else MISSING
            rows.append(Row(field.replace("_", " "), shown, figure(after), _share(before, after)))
    return rows


def speed_rows(speed: SpeedFigures | None) -> list[Row]:
    """Return time and peak memory at each batch size, as rows of before and after."""
    rows = []
    for found in () if speed is None else speed.batches:
        rows.append(
            Row(
                f"milliseconds, batch {found.batch}",
                f"{found.dense:.4g}",
                f"{found.compressed:.4g}",
                f"{gain(found):.2f} times as fast",
            )
        )
        rows.append(
            Row(
                f"peak memory, batch {found.batch}",
                size(found.dense_memory),
                size(found.compressed_memory),
                f"× {found.compressed_memory / max(found.dense_memory, 1):.3f}",
            )
        )
    return rows


def _metric_rows(dense: ModelFigures, compressed: ModelFigures) -> list[Row]:
    """Return a row for each quality metric that has none of its own yet."""
    rows = []
    for name, metric in METRICS.items():
        before, after = dense.metrics.get(name), compressed.metrics.get(name)
        if name in OWN_ROWS or before is None or after is None:
            continue
        if metric.unit == "points":
            change = f"{points(after - before)} points"
            rows.append(Row(metric.title, percent(before, 2), percent(after, 2), change))
        else:
            rows.append(Row(metric.title, f"{before:.4f}", f"{after:.4f}", ""))
    return rows


def _share(before: float | None, after: float | None) -> str:
    return f"× {after / before:.3f}" if before and after is not None else ""
