"""A sweep as a page, a drawing and a table: quality over cost, and the points that stand out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from compressor.report.classes import interval_text
from compressor.report.figures import duration, nats, percent, points
from compressor.report.intervals import wilson
from compressor.report.named_table import NamedTable
from compressor.report.pages import drawing, fill
from compressor.report.svg import FAINT, SERIES, STYLE, inline, standalone
from compressor.sweep.schema import Sweep, SweepPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D")
COSTS = (
    ("parameter_share", "parameters kept, %"),
    ("flops_share", "FLOPs kept, %"),
    ("latency_share", "time of a forward, % of dense"),
)


@dataclass(frozen=True)
class PointRow:
    """One point as it is shown; ``marks`` says what it stands out for."""

    method: str
    budget: str
    parameters: str
    flops: str
    latency: str
    quality: str
    interval: str
    change: str
    kl: str
    plan: str
    marks: str


def frontier_page(sweep: Sweep) -> str:
    """Return sweep.html: the frontier, its landmarks, and how to take a point of it."""
    shown = [row for row in _rows(sweep) if row.marks]
    return fill(
        "sweep.html",
        sweep=sweep,
        headline=frontier_sentence(sweep),
        figure=drawing(frontier_figure(sweep, prefix="frontier")),
        methods=list(enumerate(_methods(sweep))),
        series=len(SERIES),
        rows=_rows(sweep),
        landmarks=shown,
        dense=percent(sweep.quality_of(sweep.dense), 2),
        dense_interval=interval_text(sweep.quality_of(sweep.dense), sweep.data.test.samples),
        example=(shown or _rows(sweep))[0].plan,
        versions=", ".join(f"{name} {number}" for name, number in sweep.versions.items()),
        times=", ".join(f"{name} {duration(spent)}" for name, spent in sweep.seconds.items()),
    )


def frontier_figure(sweep: Sweep, *, prefix: str) -> str:
    """Return quality over cost as an SVG for a page; its ids begin with ``prefix``."""
    label = f"{sweep.quality} over parameters and FLOPs kept, and over time"
    return inline(_draw(sweep), label=label, prefix=prefix)


def frontier_drawing(sweep: Sweep) -> str:
    """Return sweep.svg, a file of its own on white."""
    figure = _draw(sweep, legend=True)
    figure.set_facecolor("white")
    return standalone(figure)


def frontier_sentence(sweep: Sweep) -> str:
    """Return how small the model becomes within each tolerance, in a sentence."""
    by_plan = {point.plan: point for point in sweep.points}
    parts = [
        f"{percent(by_plan[found.plan].parameter_share)} of the parameters within "
        f"{100 * found.tolerance:.1f} points"
        for found in sweep.within
        if found.plan is not None
    ]
    if not parts:
        return f"No point of the sweep stays within {100 * sweep.within[-1].tolerance:.1f} points."
    what = sweep.quality if sweep.quality == "accuracy" else "agreement with the dense model"
    if len({found.plan for found in sweep.within}) == 1:
        parts = parts[:1]
    return f"The smallest models by loss of {what}: {', '.join(parts)}."


def view_sweep(sweep: Sweep) -> RenderableType:
    """Return what `sweep` shows."""
    alone = len(_methods(sweep)) == 1
    table = NamedTable(
        ("budget", "params", "FLOPs", "time", sweep.quality, "points", "KL", ""),
        [
            (
                row.budget if alone else f"{row.method} {row.budget}",
                *(row.parameters, row.flops, row.latency),
                *(row.quality, row.change, row.kl, _in_short(row.marks)),
            )
            for row in _rows(sweep)
        ],
    )
    return Group(
        Text(frontier_sentence(sweep), style="bold"),
        Text(),
        table,
        Text(
            "Knee: the point furthest above the chord of the curve (Kneedle). ≤: the fewest "
            "parameters within that many points of the dense model.",
            style="dim",
        ),
        Text(),
        Text(f"page   {sweep.out}/sweep.html"),
        Text(f"plans  {sweep.out}/plans/, each for compressor compress … --plan FILE"),
    )


def _methods(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(point.method for point in sweep.points))


def _rows(sweep: Sweep) -> list[PointRow]:
    samples = sweep.data.test.samples
    reference = sweep.quality_of(sweep.dense)
    rows = []
    for point in sweep.points:
        quality = sweep.quality_of(point.figures)
        rows.append(
            PointRow(
                method=point.method,
                budget=point.budget,
                parameters=percent(point.parameter_share),
                flops=percent(point.flops_share),
                latency=percent(point.latency_share),
                quality=percent(quality, 2),
                interval=interval_text(quality, samples),
                change=points(quality - reference),
                kl=nats(point.figures.kl_to_dense),
                plan=point.plan,
                marks=", ".join(_marks(sweep, point)),
            )
        )
    return rows


def _marks(sweep: Sweep, point: SweepPoint) -> list[str]:
    marks = ["knee"] if any(knee.plan == point.plan for knee in sweep.knees) else []
    kept = [found.tolerance for found in sweep.within if found.plan == point.plan]
    return [*marks, *(f"≤ {100 * tolerance:g}" for tolerance in kept)]


def _in_short(marks: str) -> str:
    """Return marks for a table of 80 columns: ``knee ≤0.5,1`` for ``knee, ≤ 0.5, ≤ 1``."""
    return marks.replace("knee, ", "knee ").replace(", ≤ ", ",").replace("≤ ", "≤")


def _draw(sweep: Sweep, *, legend: bool = False) -> Figure:
    """Draw quality over each cost: one line a method, 95 % intervals, knees ringed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Sweeps that older versions wrote were not timed.
    timed = all(point.latency_share is not None for point in sweep.points)
    costs = COSTS if timed else COSTS[:2]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.9 * len(costs)), layout="constrained")
        for axes, (cost, title) in zip(figure.subplots(len(costs), 1), costs, strict=True):
            axes.axhline(100 * sweep.quality_of(sweep.dense), color=FAINT, ls=":", lw=1)
            for number, method in enumerate(_methods(sweep)):
                own = [point for point in sweep.points if point.method == method]
                _draw_method(axes, sweep, own, cost, number)
            axes.set_xlabel(title)
            axes.set_ylabel(f"{sweep.quality}, %")
            if legend and len(_methods(sweep)) > 1:
                axes.legend(frameon=False)
    return figure


def _draw_method(
    axes: Any, sweep: Sweep, own: Sequence[SweepPoint], cost: str, number: int
) -> None:
    colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
    own = sorted(own, key=lambda point: float(getattr(point, cost)))
    places = [100 * getattr(point, cost) for point in own]
    values = [100 * sweep.quality_of(point.figures) for point in own]
    ends = [
        wilson(sweep.quality_of(point.figures), sweep.data.test.samples) or (0.0, 1.0)
        for point in own
    ]
    axes.fill_between(
        places,
        [100 * low for low, _ in ends],
        [100 * high for _, high in ends],
        color=colour,
        alpha=0.13,
        lw=0,
    )
    axes.plot(places, values, color=colour, marker=marker, label=own[0].method)
    bends = {knee.plan for knee in sweep.knees}
    for point, place, value in zip(own, places, values, strict=True):
        if point.plan in bends:
            axes.plot([place], [value], marker="o", ms=11, mfc="none", mec=colour, mew=1.4)
