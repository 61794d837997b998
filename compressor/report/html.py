"""report.html: one compression as a page that a person can decide from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from compressor.checkpoint.instructions import AUTO_CLASSES, instructions
from compressor.report.classes import compare_classes
from compressor.report.comparison import Row, compare_models, speed_rows
from compressor.report.figures import MISSING, duration, figure, percent
from compressor.report.pages import drawing, fill
from compressor.report.plots import bound_figure, depth_figure, spectrum_figure
from compressor.report.prediction import shown_frontier
from compressor.report.recovery import recovery_rows, recovery_sentence
from compressor.report.speed import speed_sentence
from compressor.report.verdict import guidance, summary, verdict
from compressor.schema import LayerFigures, Report

METRICS = {
    "identity": "singular values of its weights",
    "second_moment": "singular values on its inputs (their second moment)",
    "covariance": "singular values on its inputs (their covariance)",
    "fisher": "singular values in the Fisher metric: how much each direction moves the predictions",
    "magnitude": "singular values scaled by the mean size of its inputs",
    "row_fisher": "singular values scaled by the Fisher information of its outputs",
}
"""What the spectra of each built-in metric show."""


@dataclass(frozen=True)
class SpectrumItem:
    """One layer's spectrum as it is shown."""

    name: str
    cut: str
    figure: Markup | None


@dataclass(frozen=True)
class LayerRow:
    """One layer's line in the table."""

    name: str
    shape: str
    rank: str
    kept: str
    nc1: str
    lost: str
    bound: str


def report_page(report: Report) -> str:
    """Return the page of one compression: self-contained HTML without scripts.

    Reports that older versions wrote render too, without the sections they hold nothing for.
    """
    grade, sentence = verdict(report)
    classes = compare_classes(report.dense.per_class, report.compressed.per_class)
    frontier = shown_frontier(report)
    values = {
        "classes": classes,
        "frontier": frontier,
        "depth": drawing(depth_figure(report.layers)),
        "bound": drawing(bound_figure(report.layers)),
        "spectra": _spectra(report.layers),
    }
    return fill(
        "report.html",
        report=report,
        headline=summary(report),
        grade=grade,
        verdict=sentence,
        data_notes=[note for note in report.data.notes if note not in report.notes],
        comparison=comparison(report),
        frontier_figure=drawing(frontier.figure if frontier else None),
        speed=speed_sentence(report.speed),
        recovery=recovery_sentence(report.recovery) if report.recovery else None,
        recovery_rows=recovery_rows(report),
        guidance=guidance(report) or "The candidates, judged on data that no statistic came from.",
        metric=_metric(report.layers),
        layers=[_row(layer) for layer in report.layers],
        kept_whole=_kept_whole(report.layers),
        left_dense=_left_dense(report),
        loading=instructions(
            report.framework,
            Path(report.out).name or report.out,
            auto_class=AUTO_CLASSES.get(report.modality or "text", AUTO_CLASSES["text"]),
        ),
        versions=", ".join(f"{name} {number}" for name, number in report.versions.items()),
        times=", ".join(f"{name} {duration(spent)}" for name, spent in report.seconds.items()),
        sections=_sections(report, {name for name, value in values.items() if value}),
        **values,
    )


def comparison(report: Report) -> list[Row]:
    """Return the rows of the table of before and after."""
    rows = compare_models(report.dense, report.compressed, report.data.test.samples)
    return [*rows, *speed_rows(report.speed)]


def _sections(report: Report, filled: set[str]) -> list[tuple[str, str]]:
    """Return id and title of every section that is there."""
    titles = (
        ("before-after", "Before and after"),
        ("losses", "What was lost"),
        ("recovery", "Recovery"),
        ("classes", "Classes"),
        ("frontier", "Frontier"),
        ("depth", "Collapse and rank"),
        ("bound", "Energy and bound"),
        ("spectra", "Spectra"),
        ("budgets", "Budgets"),
        ("choices", "Choices"),
        ("layers", "Layers"),
        ("left-dense", "Left dense"),
        ("load", "Load"),
        ("reproduce", "Reproduce"),
    )
    optional = {"classes", "frontier", "depth", "bound", "spectra"} - filled
    present = {
        "choices": report.selection,
        "budgets": report.budgets,
        "losses": report.losses,
        "recovery": report.recovery,
    }
    optional |= {name for name, found in present.items() if not found}
    return [(name, title) for name, title in titles if name not in optional]


def _spectra(layers: Sequence[LayerFigures]) -> list[SpectrumItem]:
    return [
        SpectrumItem(
            name=layer.name,
            cut=layer.shown_rank,
            figure=drawing(
                spectrum_figure(layer.spectrum, layer.rank, prefix=f"spectrum-{number}")
            ),
        )
        for number, layer in enumerate(layers)
        if layer.spectrum is not None
    ]


def _metric(layers: Sequence[LayerFigures]) -> str:
    names = {layer.spectrum.metric for layer in layers if layer.spectrum is not None}
    return " or ".join(METRICS.get(name, f"singular values ({name})") for name in sorted(names))


def _row(layer: LayerFigures) -> LayerRow:
    dense = layer.rank >= layer.full_rank
    return LayerRow(
        name=layer.name,
        shape=f"{layer.shape[0]}×{layer.shape[1]}",
        rank=layer.shown_rank,
        kept=percent(layer.parameters / max(layer.shape[0] * layer.shape[1], 1), 0),
        nc1=figure(layer.nc1_quotient),
        lost=MISSING if dense else percent(layer.energy_lost, 2),
        bound=MISSING if dense else percent(layer.bound, 2),
    )


def _kept_whole(layers: Sequence[LayerFigures]) -> str:
    names = [layer.name for layer in layers if layer.rank >= layer.full_rank]
    if not names:
        return ""
    return f"Could be factorized, but the plan keeps their full rank: {', '.join(names)}."


def _left_dense(report: Report) -> list[tuple[str, list[str]]]:
    names: dict[str, list[str]] = defaultdict(list)
    for layer in report.left_dense:
        names[layer.reason].append(layer.name)
    return list(names.items())
