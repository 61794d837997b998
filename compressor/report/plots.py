"""The figures of a compression: collapse and rank, bound and loss, spectra with their cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from compressor.report.svg import FAINT, INK, PRIMARY, SECOND, STYLE, inline
from compressor.schema import LayerFigures, Spectrum

SMALLEST_SHOWN = 1e-6
"""Shares below this are drawn at it: a logarithmic axis has no zero."""

WIDTH = 5.2
"""Inches of the wide figures: narrow enough for their words to be read on a phone."""


def depth_figure(layers: Sequence[LayerFigures]) -> str | None:
    """Return NC1 of each layer's input above the share of its rank that was kept.

    Returns:
        The SVG, or None where no layer's collapse is known.
    """
    known = [(at, layer.nc1_quotient) for at, layer in enumerate(layers, 1)]
    shown = [(at, q) for at, q in known if q is not None and 0 < q < math.inf]
    if not shown:
        return None
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        upper.plot(*zip(*shown, strict=True), color=PRIMARY, marker="o")
        upper.set_yscale("log")
        upper.set_ylabel("NC1 of the input")
        shares = [100 * layer.rank / layer.full_rank for layer in layers]
        kept = [layer.rank >= layer.full_rank for layer in layers]
        for dense, colour in ((False, PRIMARY), (True, FAINT)):
            places = [at for at, is_dense in enumerate(kept, 1) if is_dense is dense]
            lower.bar(places, [shares[at - 1] for at in places], color=colour, width=0.66)
        lower.set_ylim(0, 104)
        lower.set_ylabel("rank kept, %")
        _number_layers(lower, len(layers))
        return inline(
            figure, label="NC1 of each layer above the share of its rank kept", prefix="depth"
        )


def bound_figure(layers: Sequence[LayerFigures]) -> str | None:
    """Return the energy each factorized layer lost beside the bound from collapse.

    Returns:
        The SVG, or None where no layer was factorized, or nothing was measured.
    """
    cut = [(at, layer) for at, layer in enumerate(layers, 1) if layer.rank < layer.full_rank]
    lost = [(at, layer.energy_lost) for at, layer in cut if layer.energy_lost is not None]
    bound = [(at, layer.bound) for at, layer in cut if layer.bound is not None]
    if not lost or not bound:
        return None
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        ends = dict(lost)
        for at, value in bound:
            if at in ends:
                axes.plot([at, at], [_percent(value), _percent(ends[at])], color=FAINT, lw=0.8)
        axes.plot(*_series(bound), color=SECOND, ls="none", marker="_", ms=9, mew=1.6)
        axes.plot(*_series(lost), color=PRIMARY, ls="none", marker="o")
        axes.set_yscale("log")
        axes.set_ylabel("of the output's energy, %")
        _number_layers(axes, len(layers))
        return inline(
            figure, label="Energy lost in each layer beside the bound from collapse", prefix="bound"
        )


def spectrum_figure(spectrum: Spectrum, rank: int, *, prefix: str) -> str:
    """Return one layer's singular values over their rank, both logarithmic, with the cut.

    Args:
        spectrum: Normalized singular values.
        rank: Rank kept; at the full rank nothing is cut and no line is drawn.
        prefix: What the ids of the drawing begin with.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.5, 0.8))
        axes = figure.add_axes((0.02, 0.03, 0.96, 0.94))
        values = [max(value, SMALLEST_SHOWN) for value in spectrum.values]
        full = spectrum.ranks[-1]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(spectrum.ranks, values, color=INK, lw=1.1)
        if rank < full:
            axes.axvspan(rank, full, color=FAINT, alpha=0.22, lw=0)
            axes.axvline(rank, color=SECOND, lw=1.3)
        axes.set_xlim(1, max(full, 2))
        axes.set_ylim(SMALLEST_SHOWN, 2)
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):  # ticks that nobody sees take most of the time
            axis.set_major_locator(NullLocator())
            axis.set_minor_locator(NullLocator())
        return inline(figure, label="Singular values and the cut", prefix=prefix)


def _number_layers(axes: Any, layers: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.3, layers + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_xlabel("layer, in the order of the forward pass")


def _series(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [at for at, _ in pairs], [_percent(value) for _, value in pairs]


def _percent(share: float) -> float:
    return 100 * max(share, SMALLEST_SHOWN)
