"""The batch's end of a job's process: starting it, hearing from it, ending it."""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from compressor.batch.secrets import without_secrets
from compressor.settings import CompressSettings
from compressor.waiting import wait_shortly

WORKER = (sys.executable, "-m", "compressor.batch.worker")
"""The program that does one job."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_CGROUP = Path("/sys/fs/cgroup/cpu.max")
_TAIL = 20


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        done: Whether the job is done.
        error: Why not.
        budget: Whether a budget or target cannot be met.
        final: Whether it would only fail again.
        told: Whether it told so itself; else it was ended from outside.
    """

    done: bool
    error: str | None = None
    budget: bool = False
    final: bool = False
    told: bool = False


@dataclass
class JobProcess:
    """A job that runs.

    Args:
        name: Name of the job.
        process: Its process, leader of a group of its own.
        events: Gets (name, event) for each line that it writes, and (name, None) at its end.
        log: Gets what it writes to stderr, without secrets.
        started: When, on the monotonic clock.
    """

    name: str
    process: subprocess.Popen[str]
    events: queue.Queue[tuple[str, dict[str, Any] | None]]
    log: Path
    started: float = field(default_factory=time.monotonic)
    _outcome: dict[str, Any] | None = None
    _tail: list[str] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        name: str,
        settings: CompressSettings,
        *,
        environment: Mapping[str, str],
        events: queue.Queue[tuple[str, dict[str, Any] | None]],
        log: Path,
    ) -> JobProcess:
        """Start a job."""
        process = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=dict(environment),
            start_new_session=True,
        )
        self = cls(name, process, events, log)
        assert process.stdin is not None
        try:
            process.stdin.write(settings.model_dump_json() + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it has died already, which its end tells
        reader = threading.Thread(target=self._keep_log, args=(process.stderr,), daemon=True)
        reader.start()
        threading.Thread(target=self._hear, args=(process.stdout, reader), daemon=True).start()
        return self

    def stop(self) -> None:
        """Tell the process to finish what it is writing and end."""
        self._signal(signal.SIGTERM, group=False)

    def kill(self) -> None:
        """End the process and all that it started, now."""
        self._signal(signal.SIGKILL, group=True)

    def end(self) -> Ended:
        """Wait for the process, which has closed its output, and return how it ended."""
        code = self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        told = self._outcome or {}
        if told.get("event") == "done":
            return Ended(done=True, told=True)
        if told.get("event") == "failed":
            return Ended(
                done=False,
                error=without_secrets(told["error"]),
                budget=told["code"] == 3,
                final=told["code"] in (2, 3),
                told=True,
            )
        reason = f"exit code {code}"
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                reason += ", as the system does when memory runs out"
        last = f" Its last words: {self._tail[-1].strip()}" if self._tail else ""
        return Ended(done=False, error=f"Its process ended early: {reason}.{last} See {self.log}.")

    def _signal(self, number: int, *, group: bool) -> None:
        try:
            if group:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
        except ProcessLookupError:
            pass

    def _hear(self, stream: IO[str], log_reader: threading.Thread) -> None:
        with stream:
            for line in stream:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # cut short by a kill
                if event["event"] in ("done", "failed"):
                    self._outcome = event
                else:
                    self.events.put((self.name, event))
        self.process.wait()
        log_reader.join(timeout=5)
        self.events.put((self.name, None))

    def _keep_log(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                safe = without_secrets(line)
                self._tail = [*self._tail[1 - _TAIL :], safe]
                self.log.parent.mkdir(parents=True, exist_ok=True)
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(safe)


def cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's quota."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _CGROUP.read_text(encoding="ascii").split()
        return max(1, min(found or 1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return found or 1


def threads_of(workers: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the threads of each of several processes at once; OMP_NUM_THREADS has its way."""
    given = environment.get(THREAD_VARIABLES[0], "")
    return int(given) if given.isdigit() and int(given) else max(1, cores() // workers)


def environment_of(
    slot: int, workers: int, devices: int, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of the process in a slot: its threads, and its GPU of several.

    Args:
        slot: Number of the slot, from 0.
        workers: Processes at a time.
        devices: GPUs that there are.
        environment: What it begins with.
    """
    found = dict(environment)
    threads = str(threads_of(workers, environment))
    for variable in THREAD_VARIABLES:
        found.setdefault(variable, threads)
    wait_shortly(found)
    found.setdefault("TOKENIZERS_PARALLELISM", "false")
    if workers > 1 and devices > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(devices)))
        names = visible.split(",")
        found["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
    return found
