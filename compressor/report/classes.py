"""Accuracy by class, before and after (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.report.figures import percent, points
from compressor.report.intervals import wilson
from compressor.schema import ClassFigures

LOSSES_SHOWN = 8


@dataclass(frozen=True)
class ClassRow:
    """One class as it is shown, and its change as a share."""

    name: str
    samples: int
    dense: str
    dense_interval: str
    compressed: str
    compressed_interval: str
    points: str
    change: float


@dataclass(frozen=True)
class Classes:
    """Every class that has test samples.

    Args:
        sentence: How many classes lost, gained or kept accuracy.
        losses: The largest losses, the worst first.
        rows: All classes, in the data's order.
    """

    sentence: str
    losses: tuple[ClassRow, ...]
    rows: tuple[ClassRow, ...]


def compare_classes(
    dense: Sequence[ClassFigures], compressed: Sequence[ClassFigures]
) -> Classes | None:
    """Return both models' accuracy by class; None where a report does not tell it."""
    rows = tuple(
        row
        for before, after in zip(dense, compressed, strict=False)
        if (row := _row(before, after)) is not None
    )
    if not rows:
        return None
    lost = sorted((row for row in rows if row.change < 0), key=lambda row: row.change)
    gained = sum(row.change > 0 for row in rows)
    same = len(rows) - len(lost) - gained
    sentence = (
        f"Of {len(rows)} classes with test samples, {len(lost)} lost accuracy, {gained} gained, "
        f"and {same} kept it."
    )
    return Classes(sentence, tuple(lost[:LOSSES_SHOWN]), rows)


def interval_text(share: float | None, samples: int) -> str:
    """Return the 95 % interval of a share as text: 95.1–99.0; empty where there is none."""
    ends = wilson(share, samples)
    return "" if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def _row(before: ClassFigures, after: ClassFigures) -> ClassRow | None:
    if before.accuracy is None or after.accuracy is None:
        return None
    change = after.accuracy - before.accuracy
    return ClassRow(
        name=before.name,
        samples=before.samples,
        dense=percent(before.accuracy),
        dense_interval=interval_text(before.accuracy, before.samples),
        compressed=percent(after.accuracy),
        compressed_interval=interval_text(after.accuracy, after.samples),
        points=points(change),
        change=change,
    )
