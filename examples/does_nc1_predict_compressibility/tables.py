"""The study's page of tables, made from its results and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from compressor.report.figures import figure, percent
from examples.does_nc1_predict_compressibility.analysis import (
    COLLAPSE,
    GIVEN,
    PREDICTORS,
    Result,
    against,
    ratios,
    summary,
)
from examples.does_nc1_predict_compressibility.correlations import Correlation


def page(results: Sequence[Result]) -> str:
    """Return the page in Markdown."""
    if not results:
        return "# Does NC1 predict compressibility: tables\n\nNothing has been run yet.\n"
    first = results[0]
    used = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    titles = [result["title"] for result in results]
    seconds = sum(result["cpu_seconds"] for result in results)
    lines = [
        "# Does NC1 predict compressibility: tables",
        "",
        "Written by `python -m examples.does_nc1_predict_compressibility`; seed "
        f"{first['seed']}; {used}; {seconds} s of CPU time.",
        "",
        f"Each layer alone was truncated to {percent(first['share'], 0)} of its weights, for the "
        "reconstruction of its output, and the model compared with the dense one on test samples. "
        "Numbers are Spearman's ρ between a predictor and the KL that this cost, over the layers "
        "of one network, with 95 % bootstrap intervals over layers; **bold** where the interval "
        "leaves zero out. *Above* and *below* count networks by that.",
        "",
        "## Networks",
        "",
        *_table(
            ("network", "layers", "of", "dense accuracy", "test samples", "calibration", "KL span"),
            [
                (
                    result["title"],
                    str(len(result["layers"])),
                    str(result["candidates"]),
                    percent(result["accuracy"]),
                    str(result["tokens"] or result["samples"]),
                    str(result["calibration"]),
                    f"{figure(min(layer['kl'] for layer in result['layers']))} to "
                    f"{figure(max(layer['kl'] for layer in result['layers']))}",
                )
                for result in results
            ],
        ),
        "",
        "## Every predictor against the KL",
        "",
        *_correlations(results, titles, [(PREDICTORS[name], name, {}) for name in PREDICTORS]),
        "",
        "## The same, labels shuffled",
        "",
        "Collapse measured with the calibration labels exchanged at random: what is left has "
        "nothing to do with classes.",
        "",
        *_correlations(
            results, titles, [(PREDICTORS[name], name, {"source": "shuffled"}) for name in COLLAPSE]
        ),
        "",
    ]
    for given in GIVEN:
        lines += [
            f"## Partial: {PREDICTORS[given]} held fixed",
            "",
            *_correlations(
                results, titles, [(PREDICTORS[name], name, {"given": given}) for name in COLLAPSE]
            ),
            "",
        ]
    lines += [
        "## Every predictor against accuracy lost",
        "",
        *_correlations(
            results, titles, [(PREDICTORS[name], name, {"kind": "accuracy"}) for name in PREDICTORS]
        ),
        "",
        "## Whole models",
        "",
        "KL of a model whose allocation NC1 guides (layer weight q_out^β) over that of the "
        "unguided one, at the same budget; medians and spans over seeds. *Control*: every layer "
        "has the NC1 of another one.",
        "",
        *_table(
            ("network", "pass", "budget", "β", "KL ratio", "span", "points", "control: KL ratio"),
            list(_whole(results)),
        ),
        "",
    ]
    return "\n".join(lines)


def _correlations(
    results: Sequence[Result],
    titles: Sequence[str],
    rows: Iterable[tuple[str, str, dict[str, str]]],
) -> list[str]:
    cells = []
    for title, name, options in rows:
        found = [against(result, name, **options) for result in results]  # type: ignore[arg-type]
        middle, above, below = summary(found)
        cells.append(
            (title, *map(_cell, found), f"{middle:+.2f}".replace("-", "−"), str(above), str(below))
        )
    return _table(("predictor", *titles, "median", "above", "below"), cells)


def _cell(found: Correlation | None) -> str:
    if found is None:
        return "–"
    rho = f"{found.rho:+.2f}"
    text = f"{f'**{rho}**' if found.sure else rho} [{found.low:+.2f}, {found.high:+.2f}]"
    return text.replace("-", "−")


def _whole(results: Sequence[Result]) -> Iterable[tuple[str, ...]]:
    found = ratios(results)
    controls = {
        (one.network, one.sort, one.budget, one.beta): median(one.ratios)
        for one in found
        if one.control
    }
    for one in found:
        if not one.control:
            yield (
                one.network,
                one.sort,
                one.budget,
                f"{one.beta:g}",
                f"{median(one.ratios):.2f}",
                f"{min(one.ratios):.2f} to {max(one.ratios):.2f}",
                f"{median(one.points):+.1f}".replace("-", "−"),
                f"{controls[one.network, one.sort, one.budget, one.beta]:.2f}",
            )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
