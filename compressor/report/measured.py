"""Measurements for people and spreadsheets: the table of `compare`, and CSV of either command."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from compressor.report.figures import MISSING, duration, figure, nats, percent
from compressor.report.lines import data_lines, line, notes
from compressor.report.named_table import NamedTable
from compressor.schema import ComparisonReport, MeasuredLayer, MeasurementReport

SHOWN_UNMATCHED = 3


def measurement_csv(report: MeasurementReport) -> str:
    """Return one line a layer, every figure in full; an undefined one is an empty field."""
    return _csv([_fields(layer) for layer in report.layers])


def comparison_csv(report: ComparisonReport) -> str:
    """Return one line a shared layer: ``*_before`` and ``*_after`` of every figure."""
    return _csv(
        [
            {
                "name": layer.name,
                "weight_change": layer.weight_change,
                **{f"{key}_before": value for key, value in _figures(layer.before).items()},
                **{f"{key}_after": value for key, value in _figures(layer.after).items()},
            }
            for layer in report.layers
        ]
    )


def view_comparison(report: ComparisonReport) -> RenderableType:
    """Return what `compare` shows."""
    table = NamedTable(
        ("layer", "NC1 in", "after", "NC1 out", "after", "eff. rank", "after", "moved"),
        [
            (
                layer.name,
                figure(layer.before.nc1_quotient),
                figure(layer.after.nc1_quotient),
                figure(layer.before.nc1_quotient_output),
                figure(layer.after.nc1_quotient_output),
                f"{layer.before.effective_rank:.0f}",
                f"{layer.after.effective_rank:.0f}",
                percent(layer.weight_change),
            )
            for layer in report.layers
        ],
    )
    unmatched = {"first": report.only_before, "second": report.only_after}
    told = dict.fromkeys((*report.before.notes, *report.after.notes, *report.notes))
    return Group(
        Text(_headline(report), style="bold"),
        *([Text(_predictions(report))] if report.agreement is not None else []),
        Text(),
        table,
        Text(
            "NC1: tr Σ_W / tr Σ_B, small where classes have collapsed. Effective rank: of the "
            "weight. Moved: ‖B − A‖/‖A‖ of the weight.",
            style="dim",
        ),
        Text(),
        *data_lines(report.before.data),
        *(line(f"only {which}", _few(names)) for which, names in unmatched.items() if names),
        *notes(note for note in told if note not in report.before.data.notes),
        line("first", f"{report.before.model} ({report.before.framework})"),
        line("second", f"{report.after.model} ({report.after.framework})"),
        line("time", duration(sum(report.seconds.values()))),
    )


def _headline(report: ComparisonReport) -> str:
    """Return in how many layers collapse and rank went which way."""
    pairs = [
        (layer.before.nc1_quotient, layer.after.nc1_quotient)
        for layer in report.layers
        if layer.before.nc1_quotient is not None and layer.after.nc1_quotient is not None
    ]
    collapsed = sum(after < before for before, after in pairs)
    lower = sum(layer.after.effective_rank < layer.before.effective_rank for layer in report.layers)
    return (
        f"Of {len(report.layers)} layers, {collapsed} see inputs that are more collapsed in the "
        f"second checkpoint, and {lower} have a lower effective rank."
    )


def _predictions(report: ComparisonReport) -> str:
    known = report.before.accuracy is not None and report.after.accuracy is not None
    accuracy = (
        f"Accuracy {percent(report.before.accuracy, 2)} → {percent(report.after.accuracy, 2)} on "
        "the calibration samples; both"
        if known
        else "Both"
    )
    return f"{accuracy} predict alike on {percent(report.agreement, 2)}, KL {nats(report.kl)} nats."


def _few(names: tuple[str, ...]) -> str:
    rest = len(names) - SHOWN_UNMATCHED
    listed = ", ".join(names[:SHOWN_UNMATCHED])
    return f"{listed} and {rest} more" if rest > 0 else listed or MISSING


def _fields(layer: MeasuredLayer) -> dict[str, object]:
    rows, columns = layer.shape
    return {
        "name": layer.name,
        "kind": layer.kind,
        "rows": rows,
        "columns": columns,
        "full_rank": layer.full_rank,
        "break_even_rank": layer.break_even_rank,
        **_figures(layer),
    }


def _figures(layer: MeasuredLayer) -> dict[str, object]:
    told = {"name", "kind", "shape", "full_rank", "break_even_rank"}
    return {key: value for key, value in layer.model_dump().items() if key not in told}


def _csv(rows: list[Mapping[str, object]] | list[dict[str, object]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
