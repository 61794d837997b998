"""Collapse and rank through the depth, of one checkpoint or of two, as a drawing of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.checkpoint.save import written_whole
from compressor.errors import UsageError
from compressor.report.svg import FOURTH, PRIMARY, SECOND, STYLE, THIRD, standalone
from compressor.schema import ComparisonReport, MeasuredLayer, MeasurementReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
WIDTH, PANEL = 6.4, 2.1
"""Inches of a drawing and of each of its panels."""

Value = Callable[[MeasuredLayer], float | None]


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    label: str
    layers: Sequence[MeasuredLayer]
    value: Value
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over the layers; ``logarithmic`` ones leave out what is not positive and finite."""

    title: str
    lines: Sequence[Line]
    logarithmic: bool = False


def check_format(path: Path) -> None:
    """Refuse a drawing of a format that is not written.

    Raises:
        UsageError: If the file's name does not end as one of `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: expected a name that ends in {' or '.join(FORMATS)}.")


def draw_measurement(report: MeasurementReport, path: Path) -> None:
    """Draw NC1, ranks, the mismatch of nearest means, and stationarity where it is known."""
    layers = report.layers
    panels = [
        Panel(
            "NC1, tr Σ_W / tr Σ_B",
            [
                Line("input", layers, lambda layer: layer.nc1_quotient, PRIMARY),
                Line("output", layers, lambda layer: layer.nc1_quotient_output, SECOND),
            ],
            logarithmic=True,
        ),
        Panel(
            "share of the full rank, %",
            [
                Line("effective", layers, _share(lambda s: s.effective_rank), PRIMARY),
                Line("stable", layers, _share(lambda s: s.stable_rank), SECOND),
                Line("effective, on data", layers, _share(lambda s: s.effective_rank_data), THIRD),
                Line("stable, on data", layers, _share(lambda s: s.stable_rank_data), FOURTH),
            ],
        ),
        Panel(
            "nearest mean differs, %",
            [
                Line("input", layers, lambda s: _percent(s.nearest_mean_mismatch), PRIMARY),
                Line("output", layers, lambda s: _percent(s.nearest_mean_mismatch_output), SECOND),
            ],
        ),
        Panel("cos(W, −∇L)", [Line("", layers, lambda s: s.stationarity, PRIMARY)]),
    ]
    _write(_draw(panels), path)


def draw_comparison(report: ComparisonReport, path: Path) -> None:
    """Draw both checkpoints' NC1 and ranks over the layers that they share."""
    sides = (
        ("first", [layer.before for layer in report.layers], PRIMARY, True),
        ("second", [layer.after for layer in report.layers], SECOND, False),
    )
    values: tuple[tuple[str, Value, bool], ...] = (
        ("NC1 of the input", lambda layer: layer.nc1_quotient, True),
        ("NC1 of the output", lambda layer: layer.nc1_quotient_output, True),
        ("effective rank, % of full", _share(lambda layer: layer.effective_rank), False),
        ("the same on data, %", _share(lambda layer: layer.effective_rank_data), False),
        ("cos(W, −∇L)", lambda layer: layer.stationarity, False),
    )
    panels = [
        Panel(
            title,
            [Line(label, layers, value, colour, dashed) for label, layers, colour, dashed in sides],
            logarithmic,
        )
        for title, value, logarithmic in values
    ]
    _write(_draw(panels), path)


def _draw(panels: Sequence[Panel]) -> Figure:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = [panel for panel in panels if any(_points(line, panel) for line in panel.lines)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, PANEL * len(shown) + 0.4), layout="constrained")
        figure.set_facecolor("white")
        axes: Any = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axis, panel in zip(axes, shown, strict=True):
            for line in panel.lines:
                points = _points(line, panel)
                if points:
                    axis.plot(
                        *zip(*points, strict=True),
                        color=line.colour,
                        linestyle="--" if line.dashed else "-",
                        marker=".",
                        label=line.label,
                    )
            axis.set_yscale("log" if panel.logarithmic else "linear")
            axis.set_ylabel(panel.title)
            if any(line.label for line in panel.lines):
                axis.legend(frameon=False, fontsize="small", ncols=2)
        axes[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes[-1].set_xlabel("layer, in the order of the forward pass")
    return figure


def _points(line: Line, panel: Panel) -> list[tuple[int, float]]:
    """Return where a line has a value that its axis can show."""
    found = [(at, line.value(layer)) for at, layer in enumerate(line.layers, 1)]
    return [
        (at, value)
        for at, value in found
        if value is not None and math.isfinite(value) and (value > 0 or not panel.logarithmic)
    ]


def _write(figure: Figure, path: Path) -> None:
    with written_whole(path) as temporary:
        if path.suffix.lower() == ".svg":
            temporary.write_text(standalone(figure), encoding="utf-8")
        else:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def _share(rank: Value) -> Value:
    """Return a rank as percent of the layer's full rank."""

    def share(layer: MeasuredLayer) -> float | None:
        found = rank(layer)
        return None if found is None else 100 * found / layer.full_rank

    return share


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
