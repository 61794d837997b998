"""What other budgets would lose, as the recipe of a run predicts it: a drawing and sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compressor.report.figures import nats, percent
from compressor.report.plots import WIDTH
from compressor.report.svg import FAINT, PRIMARY, SECOND, STYLE, inline
from compressor.schema import PredictedFrontier, Report

LEVELS = (0.01, 0.1, 1.0)
"""KL, in nats, that a sentence names the shares of: the next two above the run's own."""

SPAN = 1e6
"""Below the largest loss, where the axis ends: near a share of 1 the curve falls to nothing."""


@dataclass(frozen=True)
class ShownFrontier:
    """A predicted frontier as it is shown.

    Args:
        figure: The SVG.
        sentence: What other budgets would lose, and the smallest that can be reached.
        height: Where the height of the curve is from.
    """

    figure: str
    sentence: str
    height: str


def shown_frontier(report: Report) -> ShownFrontier | None:
    """Return a report's frontier as it is shown; None where it has none.

    The curve is drawn through the KL that was measured at the run's own share, before any training:
    a prediction of second order tells how losses compare, less well how large they are.
    """
    frontier = report.frontier
    if frontier is None or sum(point.loss > 0 for point in frontier.points) < 2:
        return None
    measured = (report.recovery.without if report.recovery else report.compressed).kl_to_dense
    scale = _scale(frontier, measured)
    return ShownFrontier(
        figure=_figure(frontier, scale),
        sentence=_sentence(frontier, scale or (1.0 if frontier.unit == "nats" else None)),
        height=_height(frontier, measured, scale),
    )


def _scale(frontier: PredictedFrontier, measured: float | None) -> float | None:
    """Return nats per unit of predicted loss; None where the run's own loss tells none."""
    if measured is None or not 0 < measured < math.inf or frontier.run.loss <= 0:
        return None
    return measured / frontier.run.loss


def _height(frontier: PredictedFrontier, measured: float | None, scale: float | None) -> str:
    if scale is None:
        unit = "" if frontier.unit == "nats" else ", in a unit of the recipe"
        return f"Its height is predicted too{unit}: no loss of this run sets it."
    text = f"Its height is set by this run’s KL on the test samples, {nats(measured)} nats (ringed)"
    if frontier.unit != "nats":
        return f"{text}."
    return f"{text}; the prediction alone was {nats(frontier.run.loss)}."


def _sentence(frontier: PredictedFrontier, scale: float | None) -> str:
    """Say at which shares the KL reaches round figures, and where ranks end."""
    reached: list[str] = []
    for level in LEVELS:
        share = None if scale is None else _share_at(frontier, level / scale)
        if share is not None and len(reached) < 2:
            reached.append(f"{level:g} nats at {percent(share, 0)}")
    told = f"This run keeps {percent(frontier.run.share)} of the layers’ parameters. "
    if reached:
        told += f"The KL from the dense model is predicted to reach {' and '.join(reached)}. "
    return f"{told}No ranks go below {percent(frontier.smallest)}."


def _share_at(frontier: PredictedFrontier, loss: float) -> float | None:
    """Return the share below the run's own at which the curve reaches a loss, log-linear between.

    None where the run has lost more already, or where the smallest model loses less.
    """
    above = frontier.run
    if above.loss >= loss:
        return None
    for point in reversed(frontier.points):
        if point.share >= frontier.run.share:
            continue
        if point.loss >= loss:
            if above.loss <= 0:
                return point.share
            part = math.log(loss / above.loss) / math.log(point.loss / above.loss)
            return above.share + part * (point.share - above.share)
        above = point
    return None


def _figure(frontier: PredictedFrontier, scale: float | None) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = [point for point in frontier.points if point.loss > 0]
    losses = [point.loss * (scale or 1.0) for point in shown]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.plot([100 * point.share for point in shown], losses, color=PRIMARY, ls="--")
        axes.axvline(100 * frontier.run.share, color=SECOND, lw=1.3)
        axes.axvspan(0, 100 * frontier.smallest, color=FAINT, alpha=0.22, lw=0)
        if scale is not None:
            axes.plot(
                [100 * frontier.run.share],
                [frontier.run.loss * scale],
                marker="o",
                ms=9,
                mfc="none",
                mec=SECOND,
                mew=1.5,
            )
        axes.set_xlim(0, 102)
        axes.set_yscale("log")
        lowest = max(min(losses), max(losses) / SPAN)
        if frontier.run.loss > 0:
            lowest = min(lowest, frontier.run.loss * (scale or 1.0) / 10)
        axes.set_ylim(bottom=lowest)
        axes.set_xlabel("of the layers' parameters kept, %")
        axes.set_ylabel(
            "KL from dense, nats" if scale or frontier.unit == "nats" else "predicted loss"
        )
        return inline(
            figure,
            label="Predicted loss over the share of the parameters kept",
            prefix="frontier",
        )
