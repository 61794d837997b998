"""What `export` shows."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from compressor.report.figures import count, duration, size
from compressor.schema import ExportReport


def view_export(report: ExportReport) -> RenderableType:
    """Return what was written, and how far its outputs are off."""
    return Group(
        Text(
            f"{report.out}: {size(report.bytes)}, from a model of {count(report.parameters)} "
            "parameters."
        ),
        Text(
            f"Its outputs differ by at most {report.difference:.2g} on {report.samples} samples "
            f"(allowed: {report.tolerance:.2g})."
        ),
        *(Text(note) for note in report.notes),
        Text(f"time  {duration(report.seconds)}", style="dim"),
    )
