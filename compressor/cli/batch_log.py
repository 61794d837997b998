"""What a person sees of a batch while it runs: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import TaskID

from compressor.batch.events import Event
from compressor.batch.secrets import without_secrets
from compressor.cli.bars import TerminalBars

STYLES = {"info": "", "warning": "yellow", "error": "red"}


class TerminalLog(TerminalBars):
    """A log of a batch for people; use it as a context manager.

    Args:
        console: Where to draw; stderr if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._of_all: TaskID | None = None
        self._of_job: dict[str, TaskID] = {}
        self._stages: dict[str, str | None] = {}

    def tell(self, event: Event) -> None:
        """Show an event: a step moves a bar, anything else is a line."""
        if event.job is None:
            if event.total is not None:
                self._of_all = self._bars.add_task(
                    "jobs", total=event.total, completed=event.done or 0
                )
        elif event.kind == "begun":
            self._of_job[event.job] = self._bars.add_task(event.job, total=None)
        elif event.kind == "ended":
            self._end(event.job)
        elif event.kind == "step":
            self._step(event.job, event)
            return
        self._line(event)

    def _step(self, job: str, event: Event) -> None:
        if job in self._of_job:
            self._bars.update(
                self._of_job[job],
                description=f"{job}: {event.stage}",
                completed=event.done or 0,
                total=event.total,
            )
        if event.total is None and self._stages.get(job) != event.stage:
            self._stages[job] = event.stage
            if not self._console.is_terminal:
                self._line(Event("note", event.stage or "", job=job))

    def _end(self, job: str) -> None:
        task = self._of_job.pop(job, None)
        if task is not None:
            self._bars.remove_task(task)
        if self._of_all is not None:
            self._bars.advance(self._of_all)

    def _line(self, event: Event) -> None:
        about = "" if event.job is None else f"{event.job}: "
        self._console.print(
            f"{time.strftime('%H:%M:%S')} {about}{without_secrets(event.message)}",
            style=STYLES[event.level],
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
