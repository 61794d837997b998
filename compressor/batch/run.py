"""`batch`: the jobs of a manifest, done or planned, and the files that tell of them all."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from compressor.batch.agenda import (
    CACHE,
    Agenda,
    BatchSettings,
    all_results,
    finished,
    make_agenda,
    refuse_used,
)
from compressor.batch.events import Event, Log
from compressor.batch.process import threads_of
from compressor.batch.results import Results, report_in
from compressor.batch.scheduler import Scheduler
from compressor.batch.schema import BatchPlan, BatchSummary, JobResult, PlannedJob
from compressor.report.overview import overview_page


class StoppedError(BaseException):
    """The batch was told to stop, and has.

    Args:
        summary: What it came to.
        signal: Number of the signal.
    """

    def __init__(self, summary: BatchSummary, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.summary, self.number = summary, number


def plan_batch(settings: BatchSettings) -> BatchPlan:
    """Return what `run_batch` would do.

    Raises:
        UsageError: If anything in the manifest can never work.
    """
    agenda = make_agenda(settings)
    results = Results(settings.out)
    known = results.read()
    jobs = []
    for job in agenda.jobs:
        if job.name not in agenda.names:
            continue
        key = agenda.names[job.name]
        task = next(task for task in agenda.tasks if task.key == key)
        done = finished(task, results, known)
        jobs.append(
            PlannedJob(
                job=job.name,
                key=key,
                line=job.line,
                state="to do" if done is None else done.status,
                model=job.settings.model.model,
                data=job.settings.data.data,
                method=job.settings.method.method,
                budget=job.settings.method.budget,
                plan=None if job.settings.plan is None else str(job.settings.plan),
            )
        )
    return BatchPlan(
        manifest=str(settings.manifest),
        out=str(settings.out),
        shard=None if settings.shard is None else str(settings.shard),
        workers=settings.workers,
        threads=threads_of(settings.workers),
        jobs=tuple(jobs),
    )


def run_batch(settings: BatchSettings, *, log: Log) -> BatchSummary:
    """Do the jobs of a manifest that are not done, each in a process of its own.

    A job that fails is recorded with its error and does not stop the others. SIGTERM and SIGINT
    stop the batch within ten seconds: what is being written is finished, the rest is recorded as
    interrupted or not started.

    Raises:
        UsageError: If anything in the manifest can never work; nothing is begun then.
        OutputExistsError: If ``out`` holds something else, or results without leave to go on.
        StoppedError: After a signal.
    """
    with _told_to_stop() as (stopping, numbers):
        return _run(settings, log, stopping, numbers)


def _run(
    settings: BatchSettings, log: Log, stopping: threading.Event, numbers: list[int]
) -> BatchSummary:
    started = time.monotonic()
    refuse_used(settings)
    agenda = make_agenda(settings)
    results = Results(settings.out)
    settings.out.mkdir(parents=True, exist_ok=True)
    known = results.read()
    before = {task.key: finished(task, results, known) for task in agenda.tasks}
    for result in before.values():
        if result is not None and result.key not in known:
            results.add(result)
    todo = [task for task in agenda.tasks if before[task.key] is None]
    _tell_of(agenda, len(agenda.tasks) - len(todo), settings, log)
    Scheduler(settings, results, log, stopping).run(todo)
    known = results.read()
    done = [
        known[key].model_copy(update={"job": name})
        for name, key in agenda.names.items()
        if key in known
    ]
    summary = BatchSummary(
        manifest=str(settings.manifest),
        out=str(settings.out),
        shard=None if settings.shard is None else str(settings.shard),
        jobs=tuple(done),
        finished_before=tuple(
            name for name, key in agenda.names.items() if before[key] is not None
        ),
        seconds=round(time.monotonic() - started, 3),
    )
    everything = all_results(agenda, known)
    results.write_table(everything)
    if numbers:  # there is no time left to draw
        raise StoppedError(summary, numbers[0])
    _write_page(settings, results, everything)
    statuses = [result.status for result in everything]
    if len(statuses) == len(agenda.jobs) and set(statuses) <= {"done", "budget_not_met"}:
        shutil.rmtree(settings.out / CACHE, ignore_errors=True)
    return summary


def _write_page(settings: BatchSettings, results: Results, everything: Sequence[JobResult]) -> None:
    reports = {
        result.key: report
        for result in everything
        if result.out is not None and (report := report_in(settings.out / result.out)) is not None
    }
    results.write_page(overview_page(str(settings.manifest), everything, reports))


def _tell_of(agenda: Agenda, done: int, settings: BatchSettings, log: Log) -> None:
    count = len(agenda.tasks)
    share = "" if settings.shard is None else f" of {len(agenda.jobs)} ({settings.shard})"
    log.tell(
        Event(
            "note",
            f"{count} jobs{share}, {done} finished before; {settings.workers} at a time with "
            f"{threads_of(settings.workers)} threads each",
            total=count,
            done=done,
        )
    )


@contextmanager
def _told_to_stop() -> Iterator[tuple[threading.Event, list[int]]]:
    """Yield an event that SIGTERM and SIGINT set, and the list of those that came."""
    stopping, numbers = threading.Event(), list[int]()

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        numbers.append(number)
        stopping.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopping, numbers  # signals are the main thread's business
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping, numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
