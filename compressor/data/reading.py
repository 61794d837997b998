"""Reading the drawn samples of one split: what each modality's reader takes and gives back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from compressor.data.labelled import RawSplit, Split
from compressor.data.splits import Draw
from compressor.errors import DataError
from compressor.progress import Progress

_SHOWN = 5


@dataclass(frozen=True)
class Drawn:
    """Samples that were drawn for one split.

    Args:
        name: calibration, selection, test or recovery.
        draw: Which samples of which of the data's own splits.
        raw: That split.
        position: Class of each raw label; empty where labels play no part.
    """

    name: str
    draw: Draw
    raw: RawSplit
    position: Mapping[str | int, int]

    def where(self, index: int) -> str:
        """Return what to call a sample in messages."""
        sample = self.raw.samples[index]
        if isinstance(sample, Path):  # its name need be no UTF-8, but the report is
            return os.fsencode(sample).decode("utf-8", "backslashreplace")
        return f"row {index}" if self.draw.origin == "all" else f"{self.draw.origin} row {index}"

    def raw_labels(self, indices: Sequence[int]) -> list[str | int | None]:
        """Return the raw labels at some positions, None where there are none."""
        labels = self.raw.labels
        return [None] * len(indices) if labels is None else [labels[index] for index in indices]

    def targets(self, indices: Sequence[int]) -> Tensor | None:
        """Return the classes [N] (int64) at some positions, or None without labels."""
        if self.raw.labels is None:
            return None
        classes = [self.position[self.raw.labels[index]] for index in indices]
        return torch.tensor(classes, dtype=torch.int64)


@dataclass(frozen=True)
class ReadSplit:
    """A split that is ready to be iterated.

    Args:
        split: The split.
        digests: Content hashes of its samples, for finding duplicates.
        notes: Samples that were skipped, if any.
    """

    split: Split
    digests: frozenset[bytes]
    notes: tuple[str, ...]


class Reader(Protocol):
    """Turns drawn samples of one modality into a split."""

    @property
    def batch_size(self) -> int:
        """Return the largest number of samples in a batch."""
        ...

    def read(self, drawn: Drawn, *, progress: Progress) -> ReadSplit:
        """Read the samples, skipping those that cannot be read.

        Raises:
            DataError: If a sample cannot be read and that is to be refused, or none can.
        """
        ...


def note_skipped(drawn: Drawn, problems: Mapping[int, str], *, strict: bool) -> tuple[str, ...]:
    """Return a note that names unreadable samples, or refuse them.

    Args:
        drawn: The split.
        problems: What is wrong with each unreadable sample, by its position in the data.
        strict: Refuse instead of skipping.

    Raises:
        DataError: If ``strict`` and there is a problem, or no sample can be read.
    """
    if not problems:
        return ()
    total = len(drawn.draw.indices)
    shown = "; ".join(
        f"{drawn.where(index)} ({problem})" for index, problem in list(problems.items())[:_SHOWN]
    )
    more = f"; … ({len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
    count = f"{len(problems)} of {total} {drawn.name} samples"
    if strict:
        raise DataError(
            f"{count} cannot be read: {shown}{more}. Repair or remove them, or run without "
            f"--strict to skip them."
        )
    if len(problems) == total:
        raise DataError(f"None of the {total} {drawn.name} samples can be read: {shown}{more}.")
    return (f"Skipped {count} that cannot be read: {shown}{more}.",)
