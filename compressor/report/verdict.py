"""What a compression did, and whether that is good, in one sentence (pure)."""

from __future__ import annotations

import math
from typing import Literal

from compressor.report.figures import nats, percent, points, size
from compressor.schema import ALREADY_FACTORIZED, Report

Grade = Literal["good", "fair", "bad"]

SMALL_LOSS = 0.01
LARGE_LOSS = 0.03
SMALL_RATIO = 1.05
LARGE_RATIO = 1.25

EVEN = 0.05
"""Divergences that differ by less than this share of the larger one count as equal."""

UNSEEN = 1e-5
"""So do those that differ by less nats: no prediction's probability moves by more than √(KL/2),
0.2 %, on average (Pinsker)."""


def summary(report: Report) -> str:
    """Return shares, accuracy and size before and after as one line of prose."""
    dense, small = report.dense, report.compressed
    done = sum(layer.reason == ALREADY_FACTORIZED for layer in report.left_dense)
    share = percent(_share(small.layer_parameters, dense.layer_parameters))
    whole = (
        f"parameters of the {len(report.layers)} layers that were dense"
        if done
        else "layers' parameters"
    )
    parts = [f"{share} of the {whole} kept"]
    if dense.perplexity is not None and small.perplexity is not None:
        parts.append(
            f"perplexity {dense.perplexity:.2f} → {small.perplexity:.2f} "
            f"({small.perplexity / dense.perplexity:.2f} times)"
        )
    elif dense.accuracy is not None and small.accuracy is not None:
        parts.append(
            f"accuracy {100 * dense.accuracy:.1f} → {100 * small.accuracy:.1f} % "
            f"({points(small.accuracy - dense.accuracy)} points)"
        )
    elif small.agreement is not None:
        parts.append(f"{percent(small.agreement)} of the predictions unchanged")
    if dense.bytes is not None and small.bytes is not None:
        parts.append(f"checkpoint {size(dense.bytes)} → {size(small.bytes)}")
    return ", ".join(parts) + "."


def verdict(report: Report) -> tuple[Grade, str]:
    """Return a grade of what was lost, and the sentence that says it."""
    before, after = report.dense.perplexity, report.compressed.perplexity
    if before is not None and after is not None:
        return _verdict_on_perplexity(after / before)
    return _verdict_on_accuracy(report)


def _verdict_on_accuracy(report: Report) -> tuple[Grade, str]:
    """Grade the loss in accuracy.

    Both models see the same test samples, so only those on which they disagree can change the
    accuracy: its difference has a standard error of at most sqrt(share of them / samples), as in
    McNemar's test. A loss within twice that cannot be told from chance.
    """
    dense, small = report.dense.accuracy, report.compressed.accuracy
    samples = report.data.test.samples
    if dense is None or small is None or samples == 0:
        return "fair", "Without labels nothing says how accurate it is; compare the predictions."
    loss = dense - small
    disagreement = 1 - (report.compressed.agreement or 0.0)
    noise = 2 * math.sqrt(max(disagreement, 0.0) / samples)
    if loss <= 0:
        return "good", "Good: no accuracy was lost."
    if loss <= noise and loss <= LARGE_LOSS:
        return "good", (
            f"Good: with {samples:,} test samples that loss is within chance "
            f"(±{100 * noise:.1f} points)."
        )
    if loss <= SMALL_LOSS:
        return "good", "Good: less than a point of accuracy was lost."
    if loss <= LARGE_LOSS:
        return "fair", "Fair: a real but moderate loss; keep more if it matters."
    return "bad", "Bad: a heavy loss. Keep more, or give more calibration samples."


def _verdict_on_perplexity(ratio: float) -> tuple[Grade, str]:
    if ratio <= SMALL_RATIO:
        return "good", "Good: perplexity rose by less than 5 %."
    if ratio <= LARGE_RATIO:
        return "fair", "Fair: perplexity rose by less than a quarter; keep more if it matters."
    return "bad", "Bad: perplexity rose heavily. Keep more, or give more calibration windows."


def guidance(report: Report) -> str | None:
    """Return what NC1 guidance gained over the best unguided choice, on the selection data."""
    first = [choice for choice in report.selection if choice.made_from is None]
    guided = [choice.kl for choice in first if choice.guided]
    unguided = [choice.kl for choice in first if not choice.guided]
    if not guided or not unguided:
        return None
    chosen = next((choice for choice in report.selection if choice.chosen), None)
    name = f" Chosen: {chosen.label}." if chosen else ""
    best, plain = min(guided), min(unguided)
    if abs(best - plain) <= max(EVEN * max(best, plain), UNSEEN):
        relation = "made no practical difference"
    else:
        relation = "gained" if best < plain else "did not gain"
    return (
        f"NC1 guidance {relation} on the selection data: KL {nats(best)} guided, "
        f"{nats(plain)} unguided.{name}"
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
