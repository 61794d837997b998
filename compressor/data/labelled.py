"""The three disjoint splits that a run works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from compressor.forward import Batch
from compressor.registry import Registry


class Split(Protocol):
    """Samples of one split; iterating yields batches, in the same order each time."""

    batch_size: int

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Yield (inputs, labels [B]) batches; labels is None where the data has none."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """Labels [N] (int64) of all samples, as positions in `LabelledData.class_names`."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the samples' raw contents and labels, in order."""
        ...


@dataclass(frozen=True)
class DataOptions:
    """What a person may say about data beside its reference.

    Args:
        text_column: Column of the text, where the data has several.
        label_column: Column of the label, where it cannot be told.
        max_length: Longest sequence in tokens; longer texts are cut.
        calibration: Largest number of calibration samples.
        limit: Largest number of test samples; None takes all.
        batch_size: Samples a batch; None lets the modality decide.
        seed: Seed of every draw.
        strict: Refuse unreadable samples instead of skipping them with a warning.
    """

    text_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None
    calibration: int = 1024
    limit: int | None = None
    batch_size: int | None = None
    seed: int = 0
    strict: bool = False


@dataclass(frozen=True)
class LabelledData:
    """Labelled data, split and mapped to a model's classes.

    Args:
        reference: What the user wrote to name it.
        calibration: Samples that statistics come from.
        selection: Held-out samples that choices are made on.
        test: Samples that are looked at once, at the end.
        class_names: Name of each class that the labels count.
        classes: Index [C] of each class's logit in the model, or None where the labels are the
            logits' own indices and cover all of them.
        notes: What a person should know (skipped samples, classes not covered …).
    """

    reference: str
    calibration: Split
    selection: Split
    test: Split
    class_names: tuple[str, ...]
    classes: Tensor | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawSplit:
    """Samples of one split as a source reads them, before any model is involved.

    Args:
        samples: Indexable raw samples: a path or bytes of an image, or a text.
        labels: Raw label of each sample (name or number), or None where there are none.
    """

    samples: torch.utils.data.Dataset[object]
    labels: tuple[str | int, ...] | None


class DataSource(Protocol):
    """One form in which labelled data lies on disk or on the hub. A source is one file."""

    name: str

    def recognises(self, reference: str) -> bool:
        """Return whether this source can read ``reference`` (a cheap look)."""
        ...

    def read(self, reference: str, options: DataOptions) -> dict[str, RawSplit]:
        """Return the splits that the data has by itself: train, validation, test (any of them)."""
        ...


DATA_SOURCES: Registry[DataSource] = Registry(
    "data source",
    group="data_sources",
    modules=(
        "compressor.data.saved",
        "compressor.data.tables",
        "compressor.data.images",
        "compressor.data.hub",
    ),
)
