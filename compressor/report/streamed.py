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
            f"{size(report.bytes)} → {size(report.compressed_bytes)}. {_quality(report)}",
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
        *_data(report),
        line("time", duration(sum(report.seconds.values()))),
        line("checkpoint", report.out),
        line("report", f"{report.out}/stream.json"),
    )


def _quality(report: StreamReport) -> str:
    dense, small = report.dense, report.compressed
    if dense is None or small is None:
        return "Not evaluated: nothing was run."
    if dense.perplexity is None or small.perplexity is None or small.kl_to_dense is None:
        return "No loss is known."
    return (
        f"Perplexity {dense.perplexity:.4g} → {small.perplexity:.4g}, KL to dense "
        f"{small.kl_to_dense:.3g} nats a token."
    )


def _data(report: StreamReport) -> tuple[RenderableType, ...]:
    data = report.data
    if data is None:
        return ()
    told = (
        f"{data.reference}: {data.calibration.samples} calibration, {data.selection.samples} "
        f"selection, {data.test.samples} test windows"
    )
    chosen = [choice.label for choice in report.selection if choice.chosen]
    return (line("data", told), *(line("recipe", text) for text in chosen))
