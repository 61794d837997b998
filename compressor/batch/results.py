"""The results of a batch on disk: results.jsonl, results.csv, and where each model lies."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from compressor.batch.schema import JobResult
from compressor.checkpoint.save import write_file
from compressor.schema import REPORT_FILE, ModelFigures, Report

JSONL = "results.jsonl"
CSV = "results.csv"
PAGE = "index.html"

FIGURES = tuple(name for name in ModelFigures.model_fields if name != "per_class")
"""Figures of a model that are columns of results.csv, once for each of the two models."""


class Results:
    """The results in a directory, which many processes may add to at once.

    Args:
        out: Directory of the batch.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._path = out / JSONL
        self._lock = FileLock(out / ".results.lock")

    def read(self) -> dict[str, JobResult]:
        """Return the last line of each job by its key; lines that a kill cut short are passed."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        found = {}
        for line in text.splitlines():
            try:
                result = JobResult.model_validate_json(line)
            except ValidationError:
                continue
            found[result.key] = result
        return found

    def add(self, result: JobResult, *, if_new: bool = False) -> None:
        """Append a line in one write; an older line of the same job goes, so that it has one.

        Args:
            result: What the line says.
            if_new: Leave an older line of the same job as it is.
        """
        line = (result.model_dump_json() + "\n").encode()
        self.out.mkdir(parents=True, exist_ok=True)
        with self._lock:
            known = self.read()
            if if_new and result.key in known:
                return
            if result.key in known or self._is_cut_short():
                known.pop(result.key, None)
                kept = "".join(other.model_dump_json() + "\n" for other in known.values())
                write_file(self._path, kept + line.decode())
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def write_table(self, jobs: Sequence[JobResult]) -> None:
        """Write results.csv, one row a job."""
        with self._lock:
            write_file(self.out / CSV, table(jobs))

    def write_page(self, page: str) -> None:
        """Write index.html."""
        with self._lock:
            write_file(self.out / PAGE, page)

    def _is_cut_short(self) -> bool:
        try:
            with self._path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        except OSError:
            return False


def report_in(directory: Path) -> Report | None:
    """Return the report of a directory that compress wrote; None if there is none."""
    try:
        return Report.model_validate_json((directory / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def without_classes(figures: ModelFigures) -> ModelFigures:
    """Return figures without those of each class, of which there may be thousands."""
    return figures.model_copy(update={"per_class": ()})


def table(jobs: Sequence[JobResult]) -> str:
    """Return results as CSV: a job's own columns, then each model's figures (pure)."""
    own = [name for name in JobResult.model_fields if name not in ("dense", "compressed")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*own, *(f"{of}_{name}" for of in ("dense", "compressed") for name in FIGURES)])
    for job in jobs:
        plain = job.model_dump()
        row = [" ".join(plain[name]) if name == "budget" else plain[name] for name in own]
        for figures in (job.dense, job.compressed):
            row += [None if figures is None else getattr(figures, name) for name in FIGURES]
        writer.writerow(row)
    return stream.getvalue()
