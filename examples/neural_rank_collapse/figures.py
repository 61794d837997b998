"""The four figures of the study, (a) to (d), on white."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

from compressor.report.svg import FAINT, FOURTH, PRIMARY, SECOND, STYLE, THIRD, standalone
from examples.neural_rank_collapse.measures import MeasuredWeight
from examples.neural_rank_collapse.results import Row

NETWORK_COLOURS = (PRIMARY, SECOND, THIRD, FOURTH, FAINT)
ARMS = {
    ("plain", "stationary"): (PRIMARY, "o", "plain, near-stationary"),
    ("plain", "early"): (THIRD, "^", "plain, stopped early"),
    ("AdamW", "long"): (SECOND, "s", "AdamW"),
    ("BatchNorm", "long"): (FOURTH, "D", "BatchNorm"),
}
"""Colour, marker and words of each arm and stage that the contrasts show."""


def draw(rows: Sequence[Row], out: Path) -> None:
    """Write a.svg to d.svg of the first data set that there is."""
    if not rows:
        return
    shown = [row for row in rows if row.data == rows[0].data]
    for name, one in (("a", _collapse), ("b", _distance), ("c", _truncation), ("d", _assumptions)):
        with _figure() as figure:
            one(figure, shown)
            (out / f"{name}.svg").write_text(standalone(figure), encoding="utf-8")


def hidden(row: Row) -> list[MeasuredWeight]:
    """Return the layers between the first, whose input is the data, and the classifier."""
    return list(row.network.layers[1:-1])


def classes(row: Row) -> int:
    """Return K, the rows of the last layer."""
    return row.network.layers[-1].shape[0]


def relative_distance(layer: MeasuredWeight) -> float:
    """Return the distance to rank K over ‖W‖_F."""
    size = sum(value**2 for value in layer.singular_values) ** 0.5
    return layer.distances[0] / size if size > 0 else 0.0


def bound(layer: MeasuredWeight) -> float:
    """Return the bound on the distance to rank K."""
    return layer.collapse_term + layer.residual_term


@contextmanager
def _figure() -> Iterator[Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        figure.set_facecolor("white")
        yield figure


def _collapse(figure: Any, rows: Sequence[Row]) -> None:
    """(a) Rank and NC1 over weight decay, after SGD (dashed) and near a critical point."""
    values: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("numerical rank, mean", lambda row: mean(s.numerical_rank for s in hidden(row))),
        (
            "NC1 of the inputs, median",
            lambda row: median(s.nc1_quotient or 0.0 for s in hidden(row)),
        ),
    )
    plain = [row for row in rows if row.cell.arm == "plain"]
    titles = list(dict.fromkeys(row.cell.title for row in plain))
    for axis, (name, value) in zip(figure.subplots(1, 2), values, strict=True):
        for colour, title in zip(NETWORK_COLOURS, titles, strict=False):
            for stage, line in (("stationary", "-"), ("long", "--")):
                by_decay: dict[float, list[float]] = defaultdict(list)
                for row in plain:
                    if (row.cell.title, row.stage) == (title, stage):
                        by_decay[row.cell.decay].append(value(row))
                decays = sorted(by_decay)
                axis.plot(
                    decays,
                    [median(by_decay[decay]) for decay in decays],
                    color=colour,
                    linestyle=line,
                    marker="o",
                    label=title if stage == "stationary" else None,
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("weight decay λ")
        axis.set_ylabel(name)
    figure.axes[0].axhline(classes(rows[0]), color=FAINT, linestyle=":", label="K")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize="x-small",
        title="dashed: after SGD alone",
        title_fontsize="x-small",
    )


def _distance(figure: Any, rows: Sequence[Row]) -> None:
    """(b) Distance to rank K over TCV/λ, and beside the bound."""
    left, right = figure.subplots(1, 2)
    for stage, colour, label in (
        ("stationary", PRIMARY, "near-stationary"),
        ("early", THIRD, "stopped early"),
    ):
        chosen = [row for row in rows if row.cell.arm == "plain" and row.stage == stage]
        for first, marker in ((True, "x"), (False, "o")):
            layers = [
                layer
                for row in chosen
                for layer in (row.network.layers[:1] if first else hidden(row))
                if min(layer.shape) > classes(row) and layer.distances[0] > 0
            ]
            where = "first layer" if first else "hidden"
            style = {"color": colour, "marker": marker, "ls": "none", "label": f"{label}, {where}"}
            left.plot([s.tcv / s.decay for s in layers], [s.distances[0] for s in layers], **style)
            right.plot([bound(s) for s in layers], [s.distances[0] for s in layers], **style)
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylabel("distance to rank K")
    left.set_xlabel("TCV / λ")
    right.set_xlabel("bound on the distance")
    ends = right.get_ylim()
    right.plot(ends, ends, color=FAINT, linestyle=":", label="bound attained")
    right.legend(frameon=False, fontsize="x-small")


def _truncation(figure: Any, rows: Sequence[Row]) -> None:
    """(c) Accuracy lost with every layer at rank K (filled) and K − 1 (open)."""
    left, right = figure.subplots(1, 2, sharey=True)
    for (arm, stage), (colour, marker, label) in ARMS.items():
        chosen = [row for row in rows if (row.cell.arm, row.stage) == (arm, stage)]
        collapse = [median(s.tcv_relative or 0.0 for s in hidden(row)) for row in chosen]
        distance = [max(median(map(relative_distance, hidden(row))), 1e-5) for row in chosen]
        for which, face in ((0, colour), (1, "none")):
            lost = [
                100 * (row.network.test_accuracy - row.network.truncated[which]) for row in chosen
            ]
            style = {"color": colour, "marker": marker, "ls": "none", "markerfacecolor": face}
            left.plot(collapse, lost, label=None if which else label, **style)
            right.plot(distance, lost, **style)
    right.set_xscale("log")
    left.set_xlabel("relative TCV of the inputs, median")
    right.set_xlabel("distance to rank K over ‖W‖, median")
    left.set_ylabel("test accuracy lost, points")
    left.legend(frameon=False, fontsize="small")


def _assumptions(figure: Any, rows: Sequence[Row]) -> None:
    """(d) Distance to rank K over stationarity, for each arm and stage."""
    left, right = figure.subplots(1, 2, sharey=True)
    for (arm, stage), (colour, marker, label) in ARMS.items():
        layers = [
            layer
            for row in rows
            if (row.cell.arm, row.stage) == (arm, stage)
            for layer in hidden(row)
        ]
        style = {"color": colour, "marker": marker, "ls": "none", "ms": 3, "label": label}
        distances = [max(relative_distance(layer), 1e-5) for layer in layers]
        left.plot([layer.cosine for layer in layers], distances, **style)
        right.plot([layer.tcv_relative or 0.0 for layer in layers], distances, **style)
    left.set_yscale("log")
    left.set_xlabel("stationarity, cos(W, −∇L)")
    right.set_xlabel("relative TCV of the input")
    left.set_ylabel("distance to rank K over ‖W‖")
    left.legend(frameon=False, fontsize="small")
