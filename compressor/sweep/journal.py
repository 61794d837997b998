"""Finished points on disk, one JSON line each: what a killed sweep does not do again."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from compressor.schema import ModelFigures, Strict
from compressor.sweep.schema import SweepPoint

FILE = "points.jsonl"


class Entry(Strict):
    """One line: a point, or the dense model's figures.

    Args:
        key: Hash of everything that the figures depend on.
        point: The point, unless it is the dense model.
        plan: Hash of the point's plan file as it was written.
        dense: The dense model's figures.
    """

    key: str
    point: SweepPoint | None = None
    plan: str | None = None
    dense: ModelFigures | None = None


class Journal:
    """The lines of a points.jsonl; adding one appends it at once, in one write.

    A line that a kill cut short, and one whose key nothing asks for, is passed over.

    Args:
        path: The file; it is made when the first line is added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = {entry.key: entry for entry in _read(path)}

    def __len__(self) -> int:
        """Return the number of whole lines with different keys."""
        return len(self._entries)

    def find(self, key: str) -> Entry | None:
        """Return what was found under a key, or None."""
        return self._entries.get(key)

    def add(self, entry: Entry) -> None:
        """Append a line and flush it to the disk."""
        line = entry.model_dump_json() + "\n"
        if self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            line = "\n" + line  # the last line was cut short
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._entries[entry.key] = entry


def _read(path: Path) -> list[Entry]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Entry.model_validate_json(line))
        except ValidationError:
            continue  # cut short by a kill, or of another version: it is made again
    return found
