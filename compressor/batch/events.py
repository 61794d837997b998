"""What happens in a batch, told as it happens; and the log that programs read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from compressor.batch.secrets import without_secrets

PERIOD = 1.0
"""Seconds between two lines about the progress of one job's stage, at least."""


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        kind: ``begun`` and ``ended`` of a job, ``step`` within one of its stages, or ``note``.
        message: In words; may be empty of a step.
        level: How much it matters.
        job: Name of the job, where it is about one.
        stage: What the job is at.
        done: Steps of the stage done.
        total: Steps of the stage, where they are known.
    """

    kind: Literal["begun", "ended", "step", "note"]
    message: str = ""
    level: Literal["info", "warning", "error"] = "info"
    job: str | None = None
    stage: str | None = None
    done: int | None = None
    total: int | None = None

    @property
    def progress(self) -> float | None:
        """Share of the stage that is done."""
        if self.done is None or not self.total:
            return None
        return round(min(self.done / self.total, 1.0), 4)


class Log(Protocol):
    """Is told of every event."""

    def tell(self, event: Event) -> None:
        """Show an event, or keep it."""
        ...


class JsonLog:
    """Writes one JSON object a line: time, level, job, stage, progress, message.

    Args:
        write: Called with each line.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._last: dict[str | None, tuple[str | None, float]] = {}

    def tell(self, event: Event) -> None:
        """Write an event; steps that follow soon upon one of the same stage are left out."""
        if event.kind == "step" and self._is_too_soon(event):
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": event.level,
            "job": event.job,
            "stage": event.stage,
            "progress": event.progress,
            "message": without_secrets(event.message or event.stage or ""),
        }
        self._write(json.dumps(line, ensure_ascii=False) + "\n")

    def _is_too_soon(self, event: Event) -> bool:
        stage, at = self._last.get(event.job, (None, 0.0))
        now = time.monotonic()
        if stage == event.stage and now - at < PERIOD and event.progress != 1.0:
            return True
        self._last[event.job] = event.stage, now
        return False


class Silent:
    """A log that keeps nothing."""

    def tell(self, event: Event) -> None:
        """Drop the event."""
        del event
