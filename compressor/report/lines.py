"""Labelled lines below a result: data, notes, times."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from compressor.schema import DataFigures


def line(label: str, value: str) -> RenderableType:
    """Return a labelled line whose continuation lines stand under the value."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=11, no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(Text(label), Text(value))
    return grid


def data_lines(data: DataFigures) -> list[RenderableType]:
    """Return what a run's splits held."""
    samples = (
        f"{data.calibration.samples:,} calibration, {data.selection.samples:,} selection, "
        f"{data.test.samples:,} test samples in {data.classes} classes"
    )
    return [line("data", f"{data.reference}: {samples}"), *notes(data.notes)]


def notes(texts: Iterable[str]) -> list[RenderableType]:
    """Return one line a note."""
    return [line("note", text) for text in texts]
