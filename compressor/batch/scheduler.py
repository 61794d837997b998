"""Running jobs in several processes: claims, retries, stops, and a line for each at its end."""

from __future__ import annotations

import queue
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compressor.batch.agenda import (
    CACHE,
    CLAIMS,
    LOGS,
    BatchSettings,
    Task,
    directory_of,
    done_result,
    finished,
)
from compressor.batch.claims import Claims
from compressor.batch.events import Event, Log
from compressor.batch.process import Ended, JobProcess, environment_of
from compressor.batch.results import Results, report_in

TICK = 0.2
"""Seconds between two looks at what there is to do."""

PATIENCE = 2.0
"""Seconds between two looks at jobs that other processes hold."""

GRACE = 6.0
"""Seconds that jobs have to finish what they are writing once the batch is told to stop."""

NOTICE = 1.0
"""Seconds that a job which writes nothing has to end by itself."""

SAVING = "save"
"""Stage of a job whose end is waited for."""


@dataclass(frozen=True)
class _Running:
    task: Task
    attempt: int
    slot: int
    process: JobProcess
    directory: Path


class Scheduler:
    """Does jobs until all are done, one fails and that ends it, or it is told to stop.

    Args:
        settings: What the batch is asked for.
        results: Where lines go.
        log: Told of everything.
        stopping: Set by whoever wants it to stop.
    """

    def __init__(
        self, settings: BatchSettings, results: Results, log: Log, stopping: threading.Event
    ) -> None:
        self._settings, self._results, self._log = settings, results, log
        self._stopping = stopping
        self._claims = Claims(settings.out / CLAIMS, settings.claim_seconds)
        self._events: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
        self._pending: list[tuple[Task, int]] = []
        self._elsewhere: list[tuple[Task, int]] = []
        self._running: dict[str, _Running] = {}
        self._stages: dict[str, str] = {}
        self._measured: set[str] = set()
        self._failed = False
        self._asked = 0.0
        self._devices = _devices() if settings.workers > 1 else 0

    def run(self, tasks: list[Task]) -> None:
        """Do the tasks, and leave a line about each in the results."""
        self._pending = [(task, 1) for task in tasks]
        try:
            while self._pending or self._elsewhere or self._running:
                if self._stopping.is_set() or (self._failed and not self._running):
                    break
                self._ask_again()
                self._start()
                self._listen(TICK)
        finally:
            self._end_running()
            self._claims.release_all()
        for task, _ in (*self._pending, *self._elsewhere):
            self._results.add(task.result(status="not_started"), if_new=True)

    def _start(self) -> None:
        """Start jobs while there are free slots."""
        while (
            self._pending
            and len(self._running) < self._settings.workers
            and not (self._failed or self._stopping.is_set())
        ):
            task, attempt = self._pending.pop(self._next())
            if not self._claims.take(task.key):
                self._elsewhere.append((task, attempt))
                self._tell(task, "note", "another process is at it")
                continue
            done = finished(task, self._results, self._results.read())
            if done is not None:  # by a process that held the claim until now
                self._results.add(done)
                self._claims.release(task.key)
                continue
            self._begin(task, attempt)

    def _next(self) -> int:
        """Return which pending job is begun next: one whose statistics nobody is at present making.

        Two jobs of the same model and data, begun together, would wait for each other.
        """
        at_work = {running.task.group for running in self._running.values()}
        for position, (task, _) in enumerate(self._pending):
            if task.group in self._measured or task.group not in at_work:
                return position
        return 0

    def _begin(self, task: Task, attempt: int) -> None:
        out = self._settings.out
        directory = directory_of(task, out)
        for leftover in out.glob(f".{directory.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
        taken = {running.slot for running in self._running.values()}
        slot = min(set(range(self._settings.workers)) - taken)
        update = {"out": directory, "job": task.key, "command": self._settings.command}
        if "cache" in type(task.job.settings).model_fields:
            update["cache"] = self._settings.cache or out / CACHE
        process = JobProcess.start(
            task.job.name,
            task.job.settings.model_copy(update=update),
            environment=environment_of(slot, self._settings.workers, self._devices),
            events=self._events,
            log=out / LOGS / f"{task.job.name}.log",
        )
        self._running[task.job.name] = _Running(task, attempt, slot, process, directory)
        again = f", attempt {attempt}" if attempt > 1 else ""
        self._tell(task, "begun", f"begun{again}")

    def _ask_again(self) -> None:
        """Look whether jobs that other processes hold are done or free by now."""
        if not self._elsewhere or time.monotonic() - self._asked < PATIENCE:
            return
        self._asked = time.monotonic()
        known = self._results.read()
        for entry in tuple(self._elsewhere):
            task, _ = entry
            done = finished(task, self._results, known)
            if done is not None and task.key in known:
                self._elsewhere.remove(entry)
                self._tell(task, "note", "done by another process")
            elif self._claims.take(task.key):
                self._claims.release(task.key)
                self._elsewhere.remove(entry)
                self._pending.append(entry)

    def _listen(self, seconds: float) -> None:
        """Handle what the processes tell, waiting for the first of it."""
        for running in self._running.values():
            if self._claims.lost(running.task.key):
                running.process.kill()
        try:
            name, event = self._events.get(timeout=seconds)
        except queue.Empty:
            return
        running = self._running[name]
        if event is None:
            del self._running[name]
            self._ended(running, running.process.end())
        elif event["event"] == "note":
            self._tell(running.task, "note", event["message"])
        else:
            self._log.tell(
                Event(
                    kind="step",
                    job=name,
                    stage=event["stage"],
                    done=event["done"],
                    total=event["total"],
                )
            )
            if event["done"] is None:  # a stage begins
                self._stages[name] = event["stage"]
            if event["stage"] in ("plan", "factorize", "evaluate"):
                self._measured.add(running.task.group)

    def _ended(self, running: _Running, ended: Ended) -> None:
        task, attempt = running.task, running.attempt
        spent = round(time.monotonic() - running.process.started, 3)
        facts = {"attempts": attempt, "seconds": spent, "host": socket.gethostname()}
        report = report_in(running.directory)
        if report is not None and report.job == task.key:
            # Whatever happened afterwards: the model is there, whole.
            result = done_result(task, report, running.directory, self._settings.out, **facts)
            self._results.add(result)
            self._tell(task, "ended", f"done in {spent:.0f} s")
        elif self._claims.lost(task.key):
            self._tell(task, "ended", "another process has taken it over", "warning")
            self._elsewhere.append((task, attempt))
        elif self._stopping.is_set() and not ended.told:
            self._results.add(task.result(status="interrupted", **facts))
            self._tell(task, "ended", "interrupted", "warning")
        elif attempt <= self._settings.retry and not ended.final:
            self._tell(task, "ended", f"failed, to be tried again: {ended.error}", "warning")
            self._pending.append((task, attempt + 1))
        else:
            status = "budget_not_met" if ended.budget else "failed"
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._results.add(task.result(status=status, error=ended.error, finished=now, **facts))
            self._tell(task, "ended", ended.error or "failed", "error")
            self._failed = self._settings.fail_fast and not ended.budget
        self._claims.release(task.key)

    def _end_running(self) -> None:
        """Let jobs finish what they are writing, then end them."""
        if not self._running:
            return
        self._log.tell(
            Event("note", f"stopping {len(self._running)} jobs; what is being written is finished")
        )
        self._stopping.set()
        for running in self._running.values():
            running.process.stop()
        told = time.monotonic()
        self._until(told + NOTICE)
        for name, running in self._running.items():
            if self._stages.get(name) != SAVING:
                running.process.kill()
        self._until(told + GRACE)
        for running in self._running.values():
            running.process.kill()
        self._until(time.monotonic() + NOTICE)
        for running in self._running.values():
            self._results.add(running.task.result(status="interrupted", attempts=running.attempt))

    def _until(self, deadline: float) -> None:
        while self._running and time.monotonic() < deadline:
            self._listen(TICK)

    def _tell(self, task: Task, kind: Any, message: str, level: Any = "info") -> None:
        self._log.tell(Event(kind=kind, message=message, level=level, job=task.job.name))


def _devices() -> int:
    """Return how many GPUs there are to spread processes over."""
    import torch

    count: Callable[[], int] = torch.cuda.device_count
    return count()
