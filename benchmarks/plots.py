"""Accuracy and KL over kept parameters, one panel a workload."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables import Summary

SMALLEST_KL = 1e-6
_STYLES = {
    "default": {"color": "black", "linewidth": 2.4, "marker": "o", "zorder": 3},
    "published": {"linewidth": 1.2, "marker": "s", "markersize": 4},
    "other": {"linewidth": 1.2, "marker": "^", "markersize": 4, "linestyle": "--"},
}


def draw(found: Sequence[Summary], titles: dict[str, str], path: Path) -> None:
    """Write the plot of every arm but the controls, medians over seeds.

    Args:
        found: Medians.
        titles: Title of each workload by name.
        path: File to write; its suffix names the format.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "compressor"
    from matplotlib import pyplot

    shown = [s for s in found if s.group in _STYLES and s.kl is not None]
    workloads = list(dict.fromkeys(summary.workload for summary in shown))
    if not workloads:
        return
    methods = list(dict.fromkeys(summary.method for summary in shown))
    colours = {
        method: pyplot.colormaps["tab20"](index % 20) for index, method in enumerate(methods)
    }
    figure, axes = pyplot.subplots(
        2, len(workloads), figsize=(4.6 * len(workloads), 7), squeeze=False, sharex="col"
    )
    for column, workload in enumerate(workloads):
        upper, lower = axes[0][column], axes[1][column]
        for method in methods:
            own = [s for s in shown if (s.workload, s.method) == (workload, method)]
            own.sort(key=lambda summary: summary.values["parameter_share"])
            if not own:
                continue
            style = {"color": colours[method], **_STYLES[own[0].group], "label": method}
            shares = [100 * s.values["parameter_share"] for s in own]
            lower.plot(shares, [max(s.kl or 0.0, SMALLEST_KL) for s in own], **style)
            labelled = [s for s in own if "accuracy" in s.values]
            upper.plot(
                [100 * s.values["parameter_share"] for s in labelled],
                [100 * s.values["accuracy"] for s in labelled],
                **style,
            )
        dense = next((s for s in shown if s.workload == workload), None)
        if dense is not None and "dense_accuracy" in dense.values:
            upper.axhline(
                100 * dense.values["dense_accuracy"], color="grey", linestyle=":", label="dense"
            )
        upper.set_title(titles.get(workload, workload))
        lower.set_yscale("log")
        lower.set_xlabel("parameters kept, % of all")
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy, %")
    axes[1][0].set_ylabel("KL to the dense model, nats")
    handles = {
        text: handle
        for row in axes
        for axis in row
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize="small"
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
