"""Medians over seeds, and the Markdown that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.arms import DEFAULT
from benchmarks.controls import CONTROLS
from benchmarks.resources import MIB
from benchmarks.results import Row, latest

ALLOWED = 1.02
"""The default's KL may be this many times that of the best published method."""

CONTROL_MARGIN = 1.05
"""A control does as well as the signal where its KL is below this many times the signal's."""

_NONE = "–"


@dataclass(frozen=True)
class Summary:
    """One workload, method and budget: medians over its seeds.

    Args:
        workload: Name of the workload.
        method: Name of the arm.
        group: Sort of arm.
        budget: Budget as written.
        seeds: Seeds that finished.
        values: Medians by column; a column that no seed has is left out.
        choices: Recipes that the seeds came to.
        errors: Why seeds failed.
    """

    workload: str
    method: str
    group: str
    budget: str
    seeds: tuple[int, ...]
    values: dict[str, float]
    choices: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def kl(self) -> float | None:
        """Median KL to the dense model."""
        return self.values.get("kl")


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """Return the medians over seeds, in order of appearance."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in latest(rows):
        groups.setdefault((row.cell.workload, row.cell.budget, row.cell.method), []).append(row)
    found = []
    for (workload, budget, method), members in groups.items():
        columns: dict[str, list[float]] = {}
        for row in members:
            for name, value in _columns(row).items():
                columns.setdefault(name, []).append(value)
        figures = [row.figures for row in members if row.figures is not None]
        found.append(
            Summary(
                workload=workload,
                method=method,
                group=members[0].group,
                budget=budget,
                seeds=tuple(sorted(row.cell.seed for row in members if row.figures)),
                values={name: median(values) for name, values in columns.items()},
                choices=tuple(dict.fromkeys(figure.choice for figure in figures)),
                errors=tuple(dict.fromkeys(row.error for row in members if row.error)),
            )
        )
    return found


def _columns(row: Row) -> dict[str, float]:
    figures = row.figures
    if figures is None:
        return {}
    columns = {
        "layer_share": figures.layer_share,
        "parameter_share": figures.parameter_share,
        "kl": figures.kl,
        "agreement": figures.agreement,
        **{f"seconds_{name}": spent for name, spent in figures.seconds.items()},
    }
    if figures.accuracy is not None and figures.dense_accuracy is not None:
        columns["accuracy"] = figures.accuracy
        columns["dense_accuracy"] = figures.dense_accuracy
        columns["points_lost"] = 100 * (figures.dense_accuracy - figures.accuracy)
    if figures.perplexity is not None and figures.dense_perplexity is not None:
        columns["dense_perplexity"] = figures.dense_perplexity
        columns["perplexity_ratio"] = figures.perplexity / figures.dense_perplexity
    if figures.memory is not None:
        columns["memory"] = figures.memory / MIB
    return columns


def markdown(rows: Sequence[Row], titles: dict[str, str], *, plot: str) -> str:
    """Return the whole page.

    Args:
        rows: All rows.
        titles: Title of each workload by name.
        plot: Name of the plot's file beside the page.
    """
    found = summaries(rows)
    parts = [
        "# Quality at a given size",
        _preamble(rows),
        f"![Accuracy and KL over kept parameters]({plot})",
        "## The default against the best published method",
        *verdict(found, titles),
        "## Controls",
        *controls(found, titles),
    ]
    for workload in dict.fromkeys(summary.workload for summary in found):
        own = [summary for summary in found if summary.workload == workload]
        parts += [f"## {titles.get(workload, workload)}", *_workload(own, rows)]
    return "\n\n".join(parts) + "\n"


def _preamble(rows: Sequence[Row]) -> str:
    seeds = sorted({row.cell.seed for row in latest(rows)})
    # The default's version names files that no other method runs (quality.DEFAULT_ALONE).
    versions = [
        {row.cell.code for row in latest(rows) if row.cell.method.startswith(DEFAULT) == own}
        for own in (True, False)
    ]
    most = max(map(len, versions))
    mixed = (
        f" **The rows come from {most} versions of the code; run again for one.**"
        if most > 1
        else ""
    )
    return (
        f"Written by `make benchmark`; medians over the seeds {', '.join(map(str, seeds))}. No "
        "fine-tuning. Every method has the same calibration, selection and test samples, the same "
        "budget in weights of the same layers, and one precision. *Layers* is the share kept of "
        "the weights of the layers that can be factorized, *all* that of all parameters, "
        "embeddings, heads and biases included. KL is from the dense model on the test split, in "
        "nats. Seconds and memory are as if the method had run alone: its measuring pass, then "
        "decompositions and choice, then factors; memory is the peak above the loaded model and "
        f"data.{mixed}"
    )


def verdict(found: Sequence[Summary], titles: dict[str, str]) -> list[str]:
    """Return the comparison of the default with the best published method at each budget."""
    lines, ratios = [], []
    for workload, budget in _places(found):
        here = [s for s in found if (s.workload, s.budget) == (workload, budget) and s.kl]
        default = next((s for s in here if s.group == "default"), None)
        published = [s for s in here if s.group == "published"]
        if default is None or not published:
            continue
        best = min(published, key=lambda summary: summary.kl or 0.0)
        assert default.kl is not None
        assert best.kl is not None
        ratios.append(default.kl / best.kl)
        lines.append(
            f"| {titles.get(workload, workload)} | {budget} | {_figure(default.kl)} | "
            f"{best.method} | {_figure(best.kl)} | {ratios[-1]:.2f} |"
        )
    if not lines:
        return ["No cell has both the default and a published method yet."]
    within, below = sum(r <= ALLOWED for r in ratios), sum(r < 1 for r in ratios)
    return [
        f"The default's KL is at most {ALLOWED} times the best published one in {within} of "
        f"{len(ratios)} cells, and below it in {below}.",
        "\n".join(
            [
                f"| workload | budget | KL of `{DEFAULT}` | best published | its KL | ratio |",
                "|---|---|---|---|---|---|",
                *lines,
            ]
        ),
    ]


def controls(found: Sequence[Summary], titles: dict[str, str]) -> list[str]:
    """Return what NC1 guidance gains, beside what it gains with NC1 values that mean nothing."""
    by_name = {(s.workload, s.budget, s.method): s for s in found}
    lines: list[str] = []
    compared = beaten = 0
    for summary in found:
        names = [f"{summary.method}, {control}" for control in CONTROLS]
        trials = [by_name.get((summary.workload, summary.budget, name)) for name in names]
        values = [None if trial is None else trial.kl for trial in trials]
        if summary.kl is None or all(value is None for value in values):
            continue
        compared += 1
        beaten += any(v is not None and v <= CONTROL_MARGIN * summary.kl for v in values)
        lines.append(
            f"| {titles.get(summary.workload, summary.workload)} | {summary.budget} | "
            f"{summary.method} | {_unguided(summary, by_name)} | {_figure(summary.kl)} | "
            + " | ".join(_NONE if v is None else _figure(v) for v in values)
            + " |"
        )
    if not lines:
        return ["No control has run yet."]
    head = ["workload", "budget", "guided method", "unguided", "with NC1", *CONTROLS]
    return [
        f"KL with the measured NC1 values, and with values that mean nothing: exchanged between "
        f"layers, or measured under shuffled labels. A control did as well as the signal (its KL "
        f"at most {CONTROL_MARGIN} times as large) in {beaten} of {compared} comparisons.",
        "\n".join(
            [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines],
        ),
    ]


def _unguided(summary: Summary, by_name: dict[tuple[str, str, str], Summary]) -> str:
    """Return the KL of the same recipe without its guidance."""
    bare = ", ".join(
        part for part in summary.method.split(", ") if not part.startswith(("α", "β", "guided"))
    )
    other = by_name.get((summary.workload, summary.budget, bare))
    if bare == summary.method or other is None or other.kl is None:
        return _NONE
    return _figure(other.kl)


def _of_seeds(found: Sequence[Summary]) -> str:
    """Say which seeds finished, and which methods have fewer."""
    seeds = {seed for summary in found for seed in summary.seeds}
    fewer = dict.fromkeys(s.method for s in found if s.seeds and set(s.seeds) != seeds)
    told = f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
    return f"{told}; of {', '.join(fewer)} not all." if fewer else f"{told}."


def _workload(found: Sequence[Summary], rows: Sequence[Row]) -> list[str]:
    first = next((s for s in found if "dense_accuracy" in s.values), None)
    samples = next((r.test_samples for r in rows if r.cell.workload == found[0].workload), 0)
    parts = []
    if first is not None:
        parts.append(
            f"Dense accuracy {100 * first.values['dense_accuracy']:.2f} % on {samples} test "
            f"samples. {_of_seeds(found)}"
        )
    tokens = next((s for s in found if "dense_perplexity" in s.values), None)
    if tokens is not None:
        parts.append(
            f"Dense perplexity {tokens.values['dense_perplexity']:.2f}. *ppl ×* is the perplexity "
            "over that; samples are windows, and accuracy is that of the next token."
        )
    for budget in dict.fromkeys(summary.budget for summary in found):
        here = [s for s in found if s.budget == budget]
        here.sort(key=lambda s: (s.kl is None, s.kl or 0.0))
        head = [
            "method",
            "layers %",
            "all %",
            "accuracy %",
            "points lost",
            "KL",
            *(["ppl ×"] if tokens is not None else []),
            "agreement %",
            "measure s",
            "plan s",
            "factorize s",
            "peak MiB",
            "recipe",
        ]
        parts += [
            f"### {budget}",
            "\n".join(
                [
                    f"| {' | '.join(head)} |",
                    "|---|" + "---:|" * (len(head) - 2) + "---|",
                    *(_line(summary, tokens=tokens is not None) for summary in here),
                ]
            ),
        ]
        failed = [f"- {s.method}: {'; '.join(s.errors)}" for s in here if s.errors]
        if failed:
            parts.append("Failed:\n\n" + "\n".join(failed))
    return parts


def _line(summary: Summary, *, tokens: bool) -> str:
    values = summary.values

    def shown(name: str, digits: int, scale: float = 1.0) -> str:
        return f"{scale * values[name]:.{digits}f}" if name in values else _NONE

    planning = None
    if "seconds_plan" in values:
        planning = values["seconds_plan"] + values["seconds_decompose"]
    name = f"**{summary.method}**" if summary.group == "default" else summary.method
    cells = [
        name,
        shown("layer_share", 1, 100),
        shown("parameter_share", 1, 100),
        shown("accuracy", 2, 100),
        shown("points_lost", 2),
        _NONE if summary.kl is None else _figure(summary.kl),
        *([shown("perplexity_ratio", 3)] if tokens else []),
        shown("agreement", 2, 100),
        shown("seconds_measure", 1),
        _NONE if planning is None else f"{planning:.1f}",
        shown("seconds_factorize", 1),
        shown("memory", 0),
        "; ".join(summary.choices) or _NONE,
    ]
    return f"| {' | '.join(cells)} |"


def _places(found: Sequence[Summary]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((summary.workload, summary.budget) for summary in found))


def _figure(value: float) -> str:
    """Write a KL with three significant digits, and no exponent."""
    text = f"{value:#.3g}"
    return f"{float(text):.2g}" if "e-" in text else f"{float(text):g}" if "e" in text else text
