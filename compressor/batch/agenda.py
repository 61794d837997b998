"""What a batch has to do: its jobs by content, this call's share of them, and what is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.batch.claims import SECONDS
from compressor.batch.content import fingerprint, job_hash
from compressor.batch.manifest import Job, read_manifest
from compressor.batch.results import JSONL, Results, report_in, without_classes
from compressor.batch.schema import JobResult
from compressor.batch.shard import Shard
from compressor.errors import OutputExistsError
from compressor.fingerprint import hash_of
from compressor.schema import Report

CLAIMS = ".claims"
LOGS = "logs"
CACHE = ".cache"


@dataclass(frozen=True)
class BatchSettings:
    """What `compressor batch` is asked for.

    Args:
        manifest: The manifest.
        out: Directory of the results.
        workers: Processes at a time.
        retry: How often a job that failed is tried again.
        resume: Go on in a directory that holds results.
        fail_fast: Begin no further job once one has failed.
        shard: Which task of an array this is; it may find the others' results in ``out``.
        cache: Where statistics are kept for jobs of the same model and data; in ``out`` if None,
            until all jobs are done.
        claim_seconds: Time after which the claim of a process that has vanished is void.
        overrides: Values by key that take precedence over the manifest's.
        command: The command line as typed, for the reports.
    """

    manifest: Path
    out: Path
    workers: int = 1
    retry: int = 0
    resume: bool = False
    fail_fast: bool = False
    shard: Shard | None = None
    cache: Path | None = None
    claim_seconds: float = SECONDS
    overrides: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None


@dataclass(frozen=True)
class Task:
    """A job of this call.

    Args:
        job: The job.
        key: Hash of its content.
        group: The same for jobs that can share statistics.
    """

    job: Job
    key: str
    group: str

    def result(self, **of: Any) -> JobResult:
        """Return a line of results.jsonl about this job."""
        settings = self.job.settings
        return JobResult(
            job=self.job.name,
            key=self.key,
            model=settings.model.model,
            data=settings.data.data,
            method=settings.method.method,
            budget=settings.method.budget,
            seed=settings.seed,
            **of,
        )


@dataclass(frozen=True)
class Agenda:
    """The jobs of a batch.

    Args:
        jobs: All of the manifest.
        tasks: Those of this call, each content once.
        names: Names of this call's jobs with the key of each, in the manifest's order.
    """

    jobs: tuple[Job, ...]
    tasks: tuple[Task, ...]
    names: Mapping[str, str]


def make_agenda(settings: BatchSettings) -> Agenda:
    """Read the manifest and take this call's share of it.

    Raises:
        UsageError: If anything in the manifest can never work.
    """
    fingerprint.cache_clear()
    jobs = read_manifest(settings.manifest, overrides=settings.overrides)
    own = list(jobs) if settings.shard is None else settings.shard.of(jobs)
    tasks: dict[str, Task] = {}
    names = {}
    for job in own:
        key = job_hash(job.settings)
        names[job.name] = key
        tasks.setdefault(key, Task(job, key, _group(job)))
    return Agenda(jobs=jobs, tasks=tuple(tasks.values()), names=names)


def _group(job: Job) -> str:
    parts = [part.model_dump(mode="json") for part in (job.settings.model, job.settings.data)]
    return hash_of([*parts, job.settings.seed])


def refuse_used(settings: BatchSettings) -> None:
    """Refuse a directory that holds something else, or results without leave to go on.

    Raises:
        OutputExistsError: If it may not be written.
    """
    out = settings.out
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise OutputExistsError(f"{out} exists and is no directory. Choose another --out.")
    ours = (out / JSONL).exists() or (out / CLAIMS).is_dir()
    if any(out.iterdir()) and not ours:
        raise OutputExistsError(f"{out} exists and holds no batch. Choose another --out.")
    if (out / JSONL).exists() and not settings.resume and settings.shard is None:
        raise OutputExistsError(
            f"{out} holds results. Pass --resume to do what is missing there, or choose another "
            "--out."
        )


def directory_of(task: Task, out: Path) -> Path:
    """Return where a job's model goes: under its name, unless another job's lies there."""
    plain = out / task.job.name
    if not plain.exists() or not any(plain.iterdir()):
        return plain
    report = report_in(plain)
    if report is not None and report.job == task.key:
        return plain
    return out / f"{task.job.name}-{task.key[:8]}"


def finished(task: Task, results: Results, known: Mapping[str, JobResult]) -> JobResult | None:
    """Return what an earlier call, or another process, made of a job; None if it is to be done.

    A model that was saved, but not recorded before the process was killed, counts.
    """
    result = known.get(task.key)
    if result is not None and result.status == "budget_not_met":
        return result
    places = [] if result is None or result.out is None else [results.out / result.out]
    for directory in (*places, directory_of(task, results.out)):
        report = report_in(directory)
        if report is None or report.job != task.key:
            continue
        if result is not None and result.status == "done":
            return result
        return done_result(task, report, directory, results.out)
    return None


def done_result(task: Task, report: Report, directory: Path, out: Path, **of: Any) -> JobResult:
    """Return the line of a job whose model was saved."""
    return task.result(
        status="budget_not_met" if report.unmet else "done",
        error=" ".join(report.unmet) or None,
        out=directory.relative_to(out).as_posix(),
        finished=report.created,
        samples=report.data.test.samples,
        dense=without_classes(report.dense),
        compressed=without_classes(report.compressed),
        **{"seconds": round(sum(report.seconds.values()), 3), **of},
    )


def all_results(agenda: Agenda, known: Mapping[str, JobResult]) -> Sequence[JobResult]:
    """Return the lines of the whole manifest, in its order: other shards' by their names."""
    by_name = {result.job: result for result in known.values()}
    found = []
    for job in agenda.jobs:
        key = agenda.names.get(job.name)
        result = by_name.get(job.name) if key is None else known.get(key)
        if result is not None:
            found.append(result.model_copy(update={"job": job.name}))
    return found
