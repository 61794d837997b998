"""What `compress --stream` shows in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from compressor.report.figures import count, duration, percent, size
from compressor.report.lines import line
from compressor.report.named_table import NamedTable
from compressor.streaming.schema import StreamReport


def view_streamed(report: StreamReport) -> RenderableType:
    """Return sizes before and after, the rank of every layer, and where the result lies."""
    rows = [
        (
            layer.name,
            f"{layer.shape[0]}×{layer.shape[1]}",
            "dense" if layer.rank >= layer.full_rank else f"{layer.rank}/{layer.full_rank}",
            percent(layer.parameters / (layer.shape[0] * layer.shape[1]), 0),
        )
        for layer in report.layers
    ]
    return Group(
        Text(
            f"{percent(report.layer_share)} of the layers' parameters kept, checkpoint "
            f"{size(report.bytes)} → {size(report.compressed_bytes)}. Not evaluated: nothing was "
            "run.",
            style="bold",
        ),
        Text(),
        NamedTable(("layer", "shape", "rank", "kept"), rows),
        Text(),
        line(
            "parameters",
            f"{count(report.parameters)} → {count(report.compressed_parameters)}; never more than "
            f"{count(report.largest_unit)} in memory, {report.units} parts",
        ),
        line("time", duration(sum(report.seconds.values()))),
        line("checkpoint", report.out),
        line("report", f"{report.out}/stream.json"),
    )
