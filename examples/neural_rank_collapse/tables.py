"""The study's page of tables, made from its results and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median

from compressor.report.figures import figure, percent
from examples.neural_rank_collapse.figures import bound, classes, hidden, relative_distance
from examples.neural_rank_collapse.results import Row

COLUMNS = (
    "network",
    "arm",
    "λ",
    "stage",
    "accuracy",
    "cos, least",
    "NC1, median",
    "numerical rank",
    "distance / ‖W‖",
    "slack",
    "at K",
    "at K − 1",
)
STAGES = ("stationary", "long", "early")


def page(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """Return the page in Markdown.

    Args:
        rows: Every snapshot.
        versions: Of the packages that made them.
    """
    if not rows:
        return "# Neural rank collapse: tables\n\nNothing has been trained yet.\n"
    seeds = sorted({row.cell.seed for row in rows})
    effort = rows[0].effort
    used = ", ".join(f"{name} {number}" for name, number in versions.items())
    seconds = sum(max(r.seconds for r in found) for found in _by_cell(rows).values())
    lines = [
        "# Neural rank collapse: tables",
        "",
        "Written by `python -m examples.neural_rank_collapse`; "
        f"seeds {', '.join(map(str, seeds))}; {used}; {seconds:.0f} s of CPU time.",
        "",
        f"Full-batch SGD or AdamW for {effort.steps} steps, then, for plain networks, up to "
        f"{effort.polish} iterations of L-BFGS; *early* is after {effort.early} steps. NC1, "
        "numerical rank (above 1 % of the largest singular value), distance to rank K over the "
        "norm, and slack are over the layers between the first and the last; *cos* is the least "
        "over all layers. Slack is the bound over the distance, as a median; it is told where the "
        "distance is more than a thousandth of the norm. *At K* and *at K − 1*: test accuracy with "
        "every layer truncated.",
        "",
    ]
    for data in dict.fromkeys(row.data for row in rows):
        for stage in STAGES:
            chosen = [row for row in rows if (row.data, row.stage) == (data, stage)]
            if chosen:
                lines += [f"## {data}, {stage}", "", *_table(chosen), ""]
    return "\n".join(lines)


def _by_cell(rows: Iterable[Row]) -> dict[object, list[Row]]:
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault(row.key, []).append(row)
    return found


def _table(rows: Iterable[Row]) -> list[str]:
    head = "| " + " | ".join(COLUMNS) + " |"
    rule = "|" + "---|" * 4 + "---:|" * (len(COLUMNS) - 4)
    return [head, rule, *("| " + " | ".join(_cells(row)) + " |" for row in rows)]


def _cells(row: Row) -> tuple[str, ...]:
    layers, network = hidden(row), row.network
    slacks = [
        bound(layer) / layer.distances[0]
        for layer in layers
        if relative_distance(layer) > 1e-3 and min(layer.shape) > classes(row)
    ]
    return (
        row.cell.title,
        row.cell.arm,
        f"{row.cell.decay:g}",
        row.stage,
        percent(network.test_accuracy),
        f"{min(layer.cosine for layer in network.layers):.3f}",
        figure(median(layer.nc1_quotient or 0.0 for layer in layers)),
        f"{mean(layer.numerical_rank for layer in layers):.1f}",
        figure(median(map(relative_distance, layers))),
        figure(median(slacks)) if slacks else "–",
        percent(network.truncated[0]),
        percent(network.truncated[1]),
    )
