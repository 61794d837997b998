"""What one compression cost, and the page that shows it for many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.resources import MIB

STAGES = ("measure", "plan", "factorize")


@dataclass(frozen=True)
class Row:
    """One compression, and what it is compared with; seconds of wall time.

    Args:
        name: Of the network.
        size: Fields of its `benchmarks.synthetic.Size`; None of a checkpoint.
        parameters: Of the whole model.
        model_bytes: That they take.
        seconds: By stage.
        peaks: Peak resident bytes beyond model and data, by stage; empty where none is told.
        forward_backward: One forward and one backward pass over the calibration data.
        svd: torch.linalg.svd of every weight that can be factorized.
        eigh: Float64 eigendecompositions of the smaller sides of these.
        threads: That torch computed on.
        code: Version of the code.
        error: Why it could not be compressed; then nothing else was measured.
    """

    name: str
    size: Mapping[str, int] | None = None
    parameters: int = 0
    model_bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)
    forward_backward: float = 0.0
    svd: float = 0.0
    eigh: float = 0.0
    threads: int = 0
    code: str = ""
    error: str | None = None

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def ratios(self) -> dict[str, float]:
        """The ratios that are reported, by name."""
        found = {
            "over_pass": self.total / self.forward_backward,
            "over_svd": self.total / self.svd,
            "over_3_passes_and_2_eigh": self.total / (3 * self.forward_backward + 2 * self.eigh),
        }
        if self.peaks:
            found["memory_over_model"] = max(self.peaks.values()) / self.model_bytes
        return found

    def line(self) -> str:
        """Return the row in a line, for a person who waits."""
        if self.error is not None:
            return f"{self.name}: {self.error}"
        shown = ", ".join(f"{name} {value:.2f}" for name, value in self.ratios.items())
        return f"{self.name}: {self.total:.1f} s; {shown}"


def growth(points: Sequence[tuple[float, float]]) -> float:
    """Return the exponent p of the power law y ∝ xᵖ that fits points (x, y) best, in logarithms."""
    x, y = (np.log([point[axis] for point in points]) for axis in (0, 1))
    return float(np.polyfit(x, y, 1)[0])


def page(rows: Sequence[Row], budget: str) -> str:
    """Return the page in Markdown."""
    done = [row for row in rows if row.error is None]
    threads = sorted({row.threads for row in done})
    lines = [
        "# Cost",
        "",
        f"Written by `python -m benchmarks.cost` on {_counted(threads)}, "
        f"method `nc1`, budget `{budget}`. Every figure is a ratio within one run. *Pass* is one "
        "forward and one backward pass over the calibration data with the gradients of all "
        "parameters, *SVD* a plain `torch.linalg.svd` of every weight that can be factorized. "
        "Loading and the evaluation on test data are left out. Memory is the peak of the resident "
        "set beyond model and data. Every layer keeps the means of all classes at its input and "
        "output, in float64: that is what grows with their number.",
        "",
    ]
    if len({row.code for row in done}) > 1:
        lines += ["**The rows come from several versions of the code; run again for one.**", ""]
    checkpoints = [row for row in done if row.size is None]
    if checkpoints:
        lines += ["## Checkpoints", "", *_table(checkpoints), ""]
    axes = dict.fromkeys(_axis(row) for row in rows if row.size is not None)
    for axis in axes:
        own = [row for row in rows if row.size is not None and _axis(row) == axis]
        measured = [row for row in own if row.error is None]
        lines += [f"## Growth with {axis}", "", _others(own[0], axis), "", *_table(measured), ""]
        lines += [_exponents(measured, axis), ""] if len(measured) > 1 else []
        for row in own:
            if row.error is not None:
                lines += [f"{row.name} is refused: {row.error}", ""]
    return "\n".join(lines)


def _counted(threads: Sequence[int]) -> str:
    return f"{' and '.join(map(str, threads))} thread{'s' if max(threads, default=0) > 1 else ''}"


def _axis(row: Row) -> str:
    return row.name.split()[0]


def _others(row: Row, axis: str) -> str:
    assert row.size is not None
    parts = (f"{name} {value}" for name, value in row.size.items() if name != axis)
    return f"Transformer encoders of {', '.join(parts)}."


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| network | parameters | pass s | measure / pass | plan / pass | factorize / pass "
        "| total / pass | total / SVD | total / (3 passes + 2 eigh) | memory / model | peak MiB, "
        "by stage |",
        "|---|" + "---:|" * 10,
    ]
    for row in rows:
        stages = " | ".join(f"{row.seconds[name] / row.forward_backward:.2f}" for name in STAGES)
        ratios = row.ratios
        peaks = " / ".join(f"{row.peaks[name] / MIB:.0f}" for name in STAGES if name in row.peaks)
        memory = ratios.get("memory_over_model", math.nan)
        lines.append(
            f"| {row.name} | {row.parameters / 1e6:.2f} M | {row.forward_backward:.2f} | {stages} "
            f"| {ratios['over_pass']:.2f} | {ratios['over_svd']:.2f} "
            f"| {ratios['over_3_passes_and_2_eigh']:.2f} | {memory:.1f} | {peaks} |"
        )
    return lines


def _exponents(rows: Sequence[Row], axis: str) -> str:
    """Return in a sentence how each cost grows along an axis."""
    costs: dict[str, Any] = {
        "one pass": lambda row: row.forward_backward,
        **{name: lambda row, name=name: row.seconds[name] for name in STAGES},
        "all stages": lambda row: row.total,
        "the SVD": lambda row: row.svd,
    }
    if all(row.peaks for row in rows):
        costs["peak memory"] = lambda row: max(*row.peaks.values(), 1)
    grown = {
        name: growth([(row.size[axis], cost(row)) for row in rows])  # type: ignore[index]
        for name, cost in costs.items()
    }
    listed = ", ".join(f"{name} {value:.2f}" for name, value in grown.items())
    return f"Exponents of growth with {axis} (1: twice for twice as much): {listed}."
