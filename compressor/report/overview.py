"""A batch as a page and a table: what became of each job, and the frontier of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

from compressor.batch.schema import BatchPlan, BatchSummary, JobResult
from compressor.report.classes import interval_text
from compressor.report.figures import MISSING, duration, nats, percent, points, shorten
from compressor.report.frontier import frontier_figure
from compressor.report.named_table import plain_table
from compressor.report.pages import drawing, fill
from compressor.report.svg import SERIES
from compressor.schema import Report
from compressor.sweep.schema import Sweep, SweepPoint

WORDS = {
    "done": "done",
    "budget_not_met": "budget not met",
    "failed": "failed",
    "interrupted": "interrupted",
    "not_started": "not started",
}


@dataclass(frozen=True)
class ModelFrontier:
    """The jobs on one model and data, as they are shown.

    Args:
        title: The model.
        data: The data.
        dense: The dense model's quality, and its interval.
        quality: What it is measured by.
        methods: Methods in the order of their colours.
        figure: Quality over cost; None if only one job is done.
        rows: One a job.
    """

    title: str
    data: str
    dense: str
    quality: str
    methods: tuple[str, ...]
    figure: Markup | None
    rows: tuple[Mapping[str, object], ...]


def overview_page(manifest: str, jobs: Sequence[JobResult], reports: Mapping[str, Report]) -> str:
    """Return index.html of a batch.

    Args:
        manifest: Path of the manifest.
        jobs: Every job that anything is known of.
        reports: Reports of those that are done, by key.
    """
    groups: dict[tuple[object, ...], list[JobResult]] = {}
    for job in jobs:
        if job.key in reports:
            groups.setdefault(_group(reports[job.key]), []).append(job)
    frontiers = [
        _frontier(number, members, [reports[job.key] for job in members])
        for number, members in enumerate(groups.values())
    ]
    return fill(
        "overview.html",
        manifest=manifest,
        headline=counts_sentence([job.status for job in jobs]),
        frontiers=frontiers,
        series=len(SERIES),
        missing=[(job, WORDS[job.status]) for job in jobs if job.status != "done"],
    )


def counts_sentence(statuses: Sequence[str]) -> str:
    """Return how many jobs are in which state, in a sentence."""
    parts = [
        f"{statuses.count(status)} {word}" for status, word in WORDS.items() if status in statuses
    ]
    jobs = "1 job" if len(statuses) == 1 else f"{len(statuses)} jobs"
    return f"{jobs}: {', '.join(parts)}." if parts else "No jobs."


def view_batch(summary: BatchSummary) -> RenderableType:
    """Return what `batch` shows."""
    table = plain_table(("job", "state", "params", "accuracy", "points", "KL"))
    for job in summary.jobs:
        dense, small = job.dense, job.compressed
        if dense is None or small is None:
            table.add_row(Text(shorten(job.job, 26)), Text(WORDS[job.status]), *[Text(MISSING)] * 4)
            continue
        change = MISSING
        if dense.accuracy is not None and small.accuracy is not None:
            change = points(small.accuracy - dense.accuracy)
        table.add_row(
            Text(shorten(job.job, 26)),
            Text(WORDS[job.status]),
            Text(percent(small.parameters / max(dense.parameters, 1))),
            Text(percent(small.accuracy)),
            Text(change),
            Text(nats(small.kl_to_dense)),
        )
    errors = [
        Text(f"{job.job}: {job.error}", style="red")
        for job in summary.jobs
        if job.error is not None
    ]
    before = len(summary.finished_before)
    return Group(
        Text(counts_sentence([job.status for job in summary.jobs]), style="bold"),
        Text(),
        table,
        *errors,
        Text(),
        Text(f"{before} finished before, the rest in {duration(summary.seconds)}"),
        Text(f"page   {summary.out}/index.html"),
        Text(f"table  {summary.out}/results.csv"),
    )


def view_plan(plan: BatchPlan) -> RenderableType:
    """Return what `batch --dry-run` shows."""
    table = plain_table(("job", "line", "state", "method", "budget"))
    for job in plan.jobs:
        budget = ", ".join(job.budget) or f"as {job.plan}"
        state = "to do" if job.state == "to do" else WORDS[job.state]
        cells = (shorten(job.job, 34), str(job.line), state, job.method, shorten(budget, 24))
        table.add_row(*map(Text, cells))
    share = "" if plan.shard is None else f" of shard {plan.shard}"
    todo = sum(job.state == "to do" for job in plan.jobs)
    return Group(
        Text(f"{len(plan.jobs)} jobs{share}, {todo} to do; nothing was run.", style="bold"),
        Text(),
        table,
        Text(),
        Text(f"{plan.workers} at a time with {plan.threads} threads each, into {plan.out}"),
    )


def _group(report: Report) -> tuple[object, ...]:
    """Return what runs must share to be drawn together: the dense model and the test samples."""
    return report.model_sha256 or report.model, report.dense.parameters, report.data.test.sha256


def _frontier(number: int, jobs: Sequence[JobResult], reports: Sequence[Report]) -> ModelFrontier:
    sweep = _as_sweep(jobs, reports)
    figure = drawing(frontier_figure(sweep, prefix=f"model{number}")) if len(jobs) > 1 else None
    reference = sweep.quality_of(sweep.dense)
    samples = sweep.data.test.samples
    best = _undominated(sweep)
    rows = [
        {
            "job": job,
            "method": point.method,
            "budget": point.budget,
            "parameters": percent(point.parameter_share),
            "flops": percent(point.flops_share),
            "quality": percent(sweep.quality_of(point.figures), 2),
            "interval": interval_text(sweep.quality_of(point.figures), samples),
            "change": points(sweep.quality_of(point.figures) - reference),
            "kl": nats(point.figures.kl_to_dense),
            "best": at in best,
        }
        for at, (job, point) in enumerate(zip(jobs, sweep.points, strict=True))
    ]
    return ModelFrontier(
        title=sweep.model,
        data=sweep.data.reference,
        dense=f"{percent(reference, 2)} ({interval_text(reference, samples)})",
        quality=sweep.quality,
        methods=tuple(dict.fromkeys(point.method for point in sweep.points)),
        figure=figure,
        rows=tuple(rows),
    )


def _as_sweep(jobs: Sequence[JobResult], reports: Sequence[Report]) -> Sweep:
    """Return finished jobs on one model as the sweep that they amount to."""
    first = reports[0]
    dense = first.dense
    made = [
        SweepPoint(
            method=report.method,
            budget=", ".join(report.budget) or "plan",
            plan=job.job,
            layer_share=report.compressed.layer_parameters / max(dense.layer_parameters, 1),
            parameter_share=report.compressed.parameters / max(dense.parameters, 1),
            flops_share=report.compressed.flops / max(dense.flops, 1),
            choice="",
            figures=report.compressed,
            seconds=report.seconds,
        )
        for job, report in zip(jobs, reports, strict=True)
    ]
    return Sweep(
        model=first.model,
        framework=first.framework,
        model_sha256=first.model_sha256,
        seed=first.seed,
        device=first.device,
        command=first.command,
        created=first.created,
        versions=first.versions,
        data=first.data,
        dense=dense,
        quality="agreement" if dense.accuracy is None else "accuracy",
        points=tuple(made),
        knees=(),
        within=(),
        seconds={},
        out="",
    )


def _undominated(sweep: Sweep) -> set[int]:
    """Return the points that none beats: as small and better, or smaller and as good.

    Sizes are the same that are shown as the same: two methods seldom spend a budget to the last
    weight alike.
    """
    places = [
        (round(point.parameter_share, 3), -sweep.quality_of(point.figures))
        for point in sweep.points
    ]
    return {
        at
        for at, (cost, loss) in enumerate(places)
        if not any(
            other_cost <= cost and other_loss <= loss and (other_cost, other_loss) != (cost, loss)
            for other_cost, other_loss in places
        )
    }
