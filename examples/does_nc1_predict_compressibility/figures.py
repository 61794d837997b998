"""The figures of the study: what predicts a layer's cost, and what guidance does to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compressor.report.svg import FAINT, FOURTH, INK, PRIMARY, SECOND, STYLE, THIRD, standalone
from examples.does_nc1_predict_compressibility.analysis import (
    PREDICTORS,
    Result,
    against,
    cost,
    ratios,
    summary,
    values,
)

COLOURS = (PRIMARY, SECOND, THIRD, FOURTH, INK, FAINT, "#c9a227")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SMALLEST_KL = 1e-9


def draw(results: Sequence[Result], out: Path) -> None:
    """Write correlations.svg, layers.svg and whole.svg."""
    if not results:
        return
    for name, size, one in (
        ("correlations", (7.2, 5.6), _correlations),
        ("layers", (7.2, 2.2 * (-(-len(results) // 3)) + 0.2), _layers),
        ("whole", (7.2, 3.4), _whole),
    ):
        with _figure(size) as figure:
            one(figure, results)
            (out / f"{name}.svg").write_text(standalone(figure), encoding="utf-8")


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.set_facecolor("white")
        yield figure


def _correlations(figure: Any, results: Sequence[Result]) -> None:
    """Each predictor's ρ in each network, filled where the interval leaves zero out."""
    axis = figure.subplots()
    names = list(PREDICTORS)
    for result, colour, marker in zip(results, COLOURS, MARKERS, strict=False):
        found = [(at, against(result, name)) for at, name in enumerate(names)]
        for sure in (True, False):
            points = [(at, one.rho) for at, one in found if one is not None and one.sure is sure]
            axis.plot(
                [rho for _, rho in points],
                [at for at, _ in points],
                color=colour,
                marker=marker,
                ls="none",
                markerfacecolor=colour if sure else "none",
                label=result["title"] if sure else None,
            )
    middles = [summary([against(result, name) for result in results])[0] for name in names]
    axis.plot(middles, range(len(names)), color=INK, marker="|", ls="none", ms=14, label="median")
    axis.axvline(0, color=FAINT, lw=0.8)
    axis.set_yticks(range(len(names)), list(PREDICTORS.values()))
    axis.invert_yaxis()
    axis.set_xlim(-1.02, 1.02)
    axis.set_xlabel("Spearman's ρ with the KL of truncating the layer alone")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")


def _layers(figure: Any, results: Sequence[Result]) -> None:
    """The KL of each layer over the NC1 quotient of its output, a panel a network."""
    rows = -(-len(results) // 3)
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for axis, result in zip(axes, results, strict=False):
        quotient, divergence = values(result, "nc1_quotient_output"), cost(result)
        shown = np.isfinite(quotient) & (quotient > 0)
        depth = values(result, "depth")[shown]
        axis.scatter(
            quotient[shown],
            np.maximum(divergence[shown], SMALLEST_KL),
            c=depth,
            cmap="viridis",
            s=9,
        )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(result["title"], fontsize="small")
    for axis in axes[len(results) :]:
        axis.set_visible(False)
    figure.supxlabel("NC1 quotient of the output (dark: early layers)", fontsize="small")
    figure.supylabel("KL, nats", fontsize="small")


def _whole(figure: Any, results: Sequence[Result]) -> None:
    """KL of guided over unguided whole models, with the control."""
    found = ratios(results)
    axes = figure.subplots(1, 2, sharey=True)
    titles = [result["title"] for result in results]
    for axis, sort in zip(axes, dict.fromkeys(one.sort for one in found), strict=False):
        for control, colour, marker, label in (
            (False, PRIMARY, "o", "guided by NC1"),
            (True, SECOND, "x", "by another layer's NC1"),
        ):
            points = [
                (ratio, titles.index(one.network) + (0.14 if control else -0.14))
                for one in found
                if (one.sort, one.control, one.beta) == (sort, control, 0.25)
                for ratio in one.ratios
            ]
            axis.plot(
                [ratio for ratio, _ in points],
                [at for _, at in points],
                color=colour,
                marker=marker,
                ls="none",
                label=label,
            )
        axis.axvline(1, color=FAINT, lw=0.8)
        axis.set_xscale("log")
        axis.set_title(f"{sort}, β = 0.25", fontsize="medium")
        axis.set_xlabel("KL over unguided")
        axis.set_yticks(range(len(titles)), titles)
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, fontsize="small")
