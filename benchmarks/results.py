"""Finished cells on disk: one JSON line each, and how a finished one is recognised."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError


class Cell(BaseModel):
    """What one figure belongs to. Two cells that are equal have the same figures.

    Args:
        workload: Name of the workload.
        method: Name of the arm: a registered method, a variant of one, or a control.
        budget: Budget as written.
        seed: Seed of every draw.
        model: Hash of the dense weights.
        data: Hash of the three splits.
        settings: Hash of how both are read (input size, tokens, batch size …).
        code: Hash of the code that made the figures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    workload: str
    method: str
    budget: str
    seed: int
    model: str
    data: str
    settings: str
    code: str

    def whatever_code(self) -> Cell:
        """Return the cell without the code's version."""
        return self.model_copy(update={"code": ""})


class Figures(BaseModel):
    """What was measured in one cell.

    Args:
        layer_share: Weights kept of the layers that can be factorized.
        parameter_share: Parameters kept of all, embeddings, heads, norms and biases included.
        dense_accuracy: Accuracy of the dense model on the test split.
        accuracy: Accuracy of the compressed one.
        kl: Mean KL from the dense model on the test split, in nats.
        agreement: Share of test samples (or tokens) on which both predict alike.
        dense_perplexity: Of the dense model's tokens on the test split; None of other models.
        perplexity: Of the compressed one's.
        choice: The recipe that the method came to.
        seconds: Seconds to measure, decompose, plan, factorize and evaluate, each as if the method
            had run alone, though passes and decompositions are shared.
        memory: Peak bytes above the loaded model and data, in the same sense; None where the
            system does not tell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer_share: float
    parameter_share: float
    dense_accuracy: float | None
    accuracy: float | None
    kl: float
    agreement: float
    dense_perplexity: float | None = None
    perplexity: float | None = None
    choice: str
    seconds: dict[str, float]
    memory: int | None


class Row(BaseModel):
    """One line of results.jsonl.

    Args:
        cell: What it belongs to.
        group: What sort of arm it is: default, published, other or control.
        figures: What was measured; None where it failed.
        error: Why it failed.
        test_samples: Samples of the test split.
        threads: Threads that torch computed on.
        versions: Versions of the libraries.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell: Cell
    group: str
    figures: Figures | None = None
    error: str | None = None
    test_samples: int = 0
    threads: int = 0
    versions: dict[str, str] = {}


class Results:
    """The rows of a results.jsonl; adding one appends it at once, in one write.

    Args:
        path: The file; it and its directory are made when the first row is added.
        any_code: Take a cell for finished whatever code finished it.
    """

    def __init__(self, path: Path, *, any_code: bool = False) -> None:
        self._path = path
        self._any_code = any_code
        self.notes: list[str] = []
        self.rows = list(self._read())

    def find(self, cell: Cell) -> Row | None:
        """Return the latest row of a cell, or None if it has none."""
        wanted = self._identity(cell)
        found = [row for row in self.rows if self._identity(row.cell) == wanted]
        return found[-1] if found else None

    def add(self, row: Row) -> None:
        """Append a row; a run that is killed leaves it whole or absent."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = row.model_dump_json() + "\n"
        if self._ends_midway():
            line = "\n" + line
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.rows.append(row)

    def _ends_midway(self) -> bool:
        """Return whether the file's last line was cut off."""
        if not self._path.exists():
            return False
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def _identity(self, cell: Cell) -> Cell:
        return cell.whatever_code() if self._any_code else cell

    def _read(self) -> Iterable[Row]:
        if not self._path.exists():
            return
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            if not line:
                continue
            try:
                yield Row.model_validate_json(line)
            except ValidationError:
                self.notes.append(
                    f"{self._path}, line {number}, is no whole result (an interrupted run, or "
                    "another version of the benchmark); it is left out."
                )


def latest(rows: Iterable[Row]) -> list[Row]:
    """Return the last row of each workload, method, budget and seed, in order of appearance."""
    kept: dict[tuple[str, str, str, int], Row] = {}
    for row in rows:
        kept[row.cell.workload, row.cell.method, row.cell.budget, row.cell.seed] = row
    return list(kept.values())
