"""Results as rich tables that fit 80 columns; colour only where the console is a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from compressor.report.figures import count, duration, figure, nats, percent, shorten, size
from compressor.report.lines import data_lines, line, notes
from compressor.report.named_table import NamedTable, plain_table
from compressor.report.recovery import recovery_sentence
from compressor.report.speed import speed_sentence
from compressor.report.verdict import guidance, summary, verdict
from compressor.schema import (
    BudgetFigures,
    Choice,
    DenseLayer,
    EvaluationReport,
    Inspection,
    LayerFigures,
    MeasurementReport,
    ModelFigures,
    PlanReport,
    RecoveryFigures,
    Report,
    TaskFigures,
)

BLANK = Text()
STYLES = {"good": "green", "fair": "yellow", "bad": "red"}


def view_report(report: Report) -> RenderableType:
    """Return what `compress` and `demo` show."""
    grade, sentence = verdict(report)
    guided = guidance(report)
    return Group(
        Text(summary(report), style="bold"),
        Text(sentence, style=STYLES[grade]),
        BLANK,
        _ranks(report.layers),
        BLANK,
        _before_and_after(report.dense, report.compressed, report.recovery),
        BLANK,
        *data_lines(report.data),
        *_budgets(report.budgets),
        *_losses(report),
        *([line("speed", spoken)] if (spoken := speed_sentence(report.speed)) else []),
        *([Text(guided)] if guided else []),
        *([line("recovery", recovery_sentence(report.recovery))] if report.recovery else []),
        *_left_dense(report.left_dense),
        *notes(note for note in report.notes if note not in report.data.notes),
        line("time", duration(sum(report.seconds.values()))),
        line("checkpoint", report.out),
        line("report", f"{report.out}/report.json"),
    )


def view_plan(plan: PlanReport) -> RenderableType:
    """Return what `plan` shows."""
    return Group(
        Text(
            f"The plan keeps {percent(plan.layer_share)} of the layers' parameters, "
            f"{percent(plan.parameter_share)} of all.",
            style="bold",
        ),
        BLANK,
        _ranks(plan.layers),
        BLANK,
        *([_choices(plan.selection)] if plan.selection else []),
        *_budgets(plan.budgets),
        *_left_dense(plan.left_dense),
        *notes(plan.notes),
        *([line("plan", plan.path)] if plan.path else []),
    )


def view_inspection(inspection: Inspection, limit: int | None = None) -> RenderableType:
    """Return what `inspect` shows.

    Args:
        inspection: What was found.
        limit: Layers to list at most; all if None.
    """
    share = inspection.layer_parameters / max(inspection.parameters, 1)
    table = NamedTable(
        ("layer", "kind", "shape", "parameters", "break-even", "FLOPs"),
        [
            (
                layer.name,
                layer.kind,
                _shape(layer.shape),
                count(layer.parameters),
                f"{layer.break_even_rank}/{layer.full_rank}",
                count(layer.flops),
            )
            for layer in inspection.layers[:limit]
        ],
    )
    hidden = len(inspection.layers) - len(inspection.layers[:limit])
    return Group(
        Text(
            f"{len(inspection.layers)} layers can be factorized: "
            f"{count(inspection.layer_parameters)} of {count(inspection.parameters)} parameters "
            f"({percent(share)}).",
            style="bold",
        ),
        Text(
            f"Smallest budgets: layers={_floor(inspection.smallest_layers)}, "
            f"params={_floor(inspection.smallest_params)}."
        ),
        BLANK,
        table,
        *([Text(f"and {hidden} more layers (--limit)")] if hidden else []),
        BLANK,
        *_left_dense(inspection.left_dense),
        line("model", f"{inspection.model} ({inspection.framework})"),
        line("input", inspection.input or "unknown"),
        line("cost", f"{count(inspection.flops)} FLOPs a sample, {size(inspection.bytes)} on disk"),
    )


def view_measurement(measurement: MeasurementReport) -> RenderableType:
    """Return what `measure` shows."""
    table = NamedTable(
        ("layer", "NC1 in", "NC1 out", "CDNV in", "NC4", "eff. rank", "of data", "full"),
        [
            (
                layer.name,
                figure(layer.nc1_quotient),
                figure(layer.nc1_quotient_output),
                figure(layer.cdnv),
                percent(layer.nearest_mean_mismatch, 0),
                f"{layer.effective_rank:.0f}",
                "–" if layer.effective_rank_data is None else f"{layer.effective_rank_data:.0f}",
                str(layer.full_rank),
            )
            for layer in measurement.layers
        ],
    )
    quotients = [
        layer.nc1_quotient for layer in measurement.layers if layer.nc1_quotient is not None
    ]
    span = f", NC1 from {figure(max(quotients))} to {figure(min(quotients))}" if quotients else ""
    labels = "the given labels" if measurement.labels == "given" else "k-means clusters, not labels"
    return Group(
        Text(f"{len(measurement.layers)} layers measured{span} (by {labels}).", style="bold"),
        BLANK,
        table,
        Text(
            "NC1: tr Σ_W / tr Σ_B, small where classes have collapsed. NC4: samples whose nearest "
            "class mean is another class than the model's. Effective rank: of the weight, and of "
            "the weight on its data.",
            style="dim",
        ),
        BLANK,
        *data_lines(measurement.data),
        *_left_dense(measurement.left_dense),
        *notes(note for note in measurement.notes if note not in measurement.data.notes),
        line("time", duration(sum(measurement.seconds.values()))),
    )


def view_evaluation(evaluation: EvaluationReport) -> RenderableType:
    """Return what `evaluate` shows."""
    flops = "" if evaluation.flops is None else f", {count(evaluation.flops)} FLOPs a sample"
    return Group(
        *([] if evaluation.samples is None else [_found(evaluation)]),
        *_tasks(evaluation.tasks),
        *notes(evaluation.notes),
        line("model", f"{evaluation.model} ({evaluation.framework})"),
        line(
            "cost",
            f"{count(evaluation.parameters)} parameters, {size(evaluation.bytes)} on disk{flops}",
        ),
        *(
            []
            if evaluation.sha256 is None
            else [line("test data", f"sha256 {evaluation.sha256[:16]}…")]
        ),
        line("time", duration(evaluation.seconds)),
    )


def _found(evaluation: EvaluationReport) -> RenderableType:
    """Return the figures on the test data."""
    found = (
        f"Accuracy {percent(evaluation.accuracy, 2)}"
        if evaluation.accuracy is not None
        else "No labels, no accuracy"
    )
    loss = "" if evaluation.loss is None else f", loss {evaluation.loss:.4f} nats"
    if evaluation.perplexity is not None:
        found = f"Perplexity {evaluation.perplexity:.2f}, a{found[1:]}"
    return Text(f"{found}{loss} on {evaluation.samples or 0:,} test samples.", style="bold")


def _tasks(tasks: Iterable[TaskFigures]) -> list[RenderableType]:
    """Return one line a task of the harness."""
    return [
        line(
            "lm-eval",
            f"{task.task}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in task.metrics.items())
            + ("" if task.samples is None else f" on {task.samples:,} samples"),
        )
        for task in tasks
    ]


def _ranks(layers: Sequence[LayerFigures]) -> RenderableType:
    truncated = any(layer.energy_lost is not None for layer in layers)
    rows = []
    for layer in layers:
        dense = layer.rank >= layer.full_rank
        cells = (
            layer.name,
            _shape(layer.shape),
            layer.shown_rank,
            percent(layer.parameters / max(layer.shape[0] * layer.shape[1], 1), 0),
            figure(layer.nc1_quotient),
            "–" if dense else percent(layer.bound, 2),
            "–" if dense else percent(layer.energy_lost, 2),
        )
        rows.append(cells if truncated else cells[:-1])
    titles = ("layer", "shape", "rank", "kept", "NC1", "NC1 bound", "lost")
    legend = (
        "NC1: tr Σ_W / tr Σ_B of the layer's input. NC1 bound: what the best truncation to this "
        "rank loses at most of the output's energy, as collapse alone tells."
    )
    if truncated:
        legend += " Lost: what this one did; more where the predictions miss it less."
    table = NamedTable(titles if truncated else titles[:-1], rows)
    return Group(table, Text(legend, style="dim"))


def _before_and_after(
    dense: ModelFigures, small: ModelFigures, recovery: RecoveryFigures | None
) -> RenderableType:
    title = "compressed" if recovery is None else "recovered"
    table = plain_table(("", "dense", title, "share"))
    rows = (
        ("parameters", count, dense.parameters, small.parameters),
        ("  in these layers", count, dense.layer_parameters, small.layer_parameters),
        ("bytes on disk", size, dense.bytes, small.bytes),
        ("FLOPs a sample", count, dense.flops, small.flops),
    )
    if dense.perplexity is not None and small.perplexity is not None:
        share = percent(small.perplexity / dense.perplexity)
        shown = f"{dense.perplexity:.2f}", f"{small.perplexity:.2f}"
        table.add_row(*_cells("perplexity", *shown, share))
    if dense.byte_perplexity is not None and small.byte_perplexity is not None:
        shown = f"{dense.byte_perplexity:.3f}", f"{small.byte_perplexity:.3f}"
        table.add_row(*_cells("  per byte", *shown, ""))
    table.add_row(*_cells("accuracy", percent(dense.accuracy, 2), percent(small.accuracy, 2), ""))
    for label, show, before, after in rows:
        share = percent(after / before) if before and after is not None else ""
        table.add_row(*_cells(label, show(before), show(after), share))
    table.add_row(*_cells("same prediction", "", percent(small.agreement, 2), ""))
    table.add_row(*_cells("KL to dense, nats", "", nats(small.kl_to_dense), ""))
    if recovery is not None:
        table.add_row(*_cells("without recovery", "", "", ""))
        free = recovery.without
        table.add_row(*_cells("  accuracy", "", percent(free.accuracy, 2), ""))
        table.add_row(*_cells("  same prediction", "", percent(free.agreement, 2), ""))
        table.add_row(*_cells("  KL to dense, nats", "", nats(free.kl_to_dense), ""))
    return table


def _choices(choices: Iterable[Choice]) -> RenderableType:
    table = plain_table(("choice", "KL", "accuracy", "NC1", ""))
    for choice in choices:
        table.add_row(
            *_cells(
                shorten(choice.label, 44),
                f"≥ {nats(choice.kl)}" if choice.lower_bound else nats(choice.kl),
                percent(choice.accuracy),
                "guided" if choice.guided else "",
                "chosen" if choice.chosen else "",
            )
        )
    return table


def _budgets(budgets: Iterable[BudgetFigures]) -> list[RenderableType]:
    return [
        line(
            "budget",
            f"{found.budget}: {found.reached} of {found.limit} allowed"
            f"{'' if found.met else ', not met'}; dense {found.dense}",
        )
        for found in budgets
    ]


def _losses(report: Report) -> list[RenderableType]:
    found = [loss for loss in report.losses if loss.metric == "top-1"]
    return [line("loss", f"{loss.text} of accuracy, paired, 95 % interval") for loss in found]


def _left_dense(layers: Iterable[DenseLayer]) -> list[RenderableType]:
    names: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        names[layer.reason].append(layer.name)
    return [line("left dense", f"{reason}: {_few(members)}") for reason, members in names.items()]


def _few(names: Sequence[str], shown: int = 2) -> str:
    listed = ", ".join(shorten(name, 40) for name in names[:shown])
    return listed + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _cells(*values: str) -> list[Text]:
    """Return cells whose text is shown as it is, without reading markup in it."""
    return [Text(value) for value in values]


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _floor(share: float) -> str:
    """Return the smallest percentage that is not below a share, to a tenth."""
    return f"{-(-share * 1000 // 1) / 10:.1f}%"
