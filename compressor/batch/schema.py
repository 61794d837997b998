"""results.jsonl: what became of each job of a batch."""

from __future__ import annotations

from typing import Literal

from compressor.schema import ModelFigures, Strict

RESULT_VERSION = 1

Status = Literal["done", "budget_not_met", "failed", "interrupted", "not_started"]


class JobResult(Strict):
    """One line of results.jsonl.

    Args:
        job: Name of the job.
        key: Hash of its settings and of the files they name: what it is known by.
        status: ``budget_not_met`` if no model fits, or what was saved only comes nearest;
            ``interrupted`` if the batch was stopped while it ran.
        out: Directory of the result, relative to the batch's; None if there is none.
        error: Why it failed; None if it did not.
        attempts: How often it was begun in the call that ended with this.
        seconds: Time of the last attempt.
        host: Machine that it ran on.
        finished: When, in UTC; None of a job that was not begun.
        samples: Test samples.
        dense: The dense model's figures, without those of each class.
        compressed: The compressed model's.
    """

    version: int = RESULT_VERSION
    job: str
    key: str
    status: Status
    model: str
    data: str
    method: str
    budget: tuple[str, ...]
    seed: int
    out: str | None = None
    error: str | None = None
    attempts: int = 0
    seconds: float | None = None
    host: str | None = None
    finished: str | None = None
    samples: int | None = None
    dense: ModelFigures | None = None
    compressed: ModelFigures | None = None


class BatchSummary(Strict):
    """What `batch` prints.

    Args:
        manifest: Path of the manifest.
        out: Directory of the results.
        shard: Which task of an array this was; None if it did all jobs.
        jobs: What became of this call's jobs, in the manifest's order.
        finished_before: Names of those that an earlier call had finished.
        seconds: Time of this call.
    """

    manifest: str
    out: str
    shard: str | None
    jobs: tuple[JobResult, ...]
    finished_before: tuple[str, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 if all are done, 3 if no model fits some budgets, 1 if anything else is not done."""
        statuses = {job.status for job in self.jobs}
        if statuses - {"done", "budget_not_met"}:
            return 1
        return 3 if "budget_not_met" in statuses else 0


class PlannedJob(Strict):
    """One job of a plan: ``state`` is what an earlier call made of it, or ``to do``."""

    job: str
    key: str
    line: int
    state: Status | Literal["to do"]
    model: str
    data: str
    method: str
    budget: tuple[str, ...]
    plan: str | None


class BatchPlan(Strict):
    """What `batch --dry-run` prints.

    Args:
        manifest: Path of the manifest.
        out: Directory of the results.
        shard: Which task of an array this is; None if it does all jobs.
        workers: Processes at a time.
        threads: Threads of each.
        jobs: This call's jobs, in the manifest's order.
    """

    manifest: str
    out: str
    shard: str | None
    workers: int
    threads: int
    jobs: tuple[PlannedJob, ...]
