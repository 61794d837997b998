"""The splits that a run works on, and what a data source gives to make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from compressor.forward import Batch
from compressor.registry import Registry
from compressor.settings import DataSettings


class Split(Protocol):
    """Samples of one split; iterating yields batches, in the same order each time."""

    @property
    def batch_size(self) -> int:
        """Return the largest number of samples in a batch."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Yield (inputs, labels [B]) batches; labels is None where the data has none."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """Labels [N] (int64) of all samples, as positions in `LabelledData.class_names`.

        They come in the order in which iterating yields the samples.
        """
        ...

    @property
    def sha256(self) -> str:
        """Hash of the samples' raw contents and labels, in the order in which they were drawn."""
        ...


@dataclass(frozen=True)
class LabelledData:
    """Labelled data, split and mapped to a model's classes.

    Args:
        reference: What the user wrote to name it.
        calibration: Samples that statistics come from.
        selection: Held-out samples that choices are made on.
        test: Samples that are looked at once, at the end.
        recovery: Samples that training after the truncation learns from, in neither selection nor
            test; empty where none is to be done.
        class_names: Name of each class that the labels count.
        classes: Index [C] of each class's logit in the model, or None where the labels are the
            logits' own indices and cover all of them.
        notes: What a person should know (skipped samples, classes not covered …).
        test_bytes: UTF-8 bytes of the text that the test predicts, where tokens are predicted.
    """

    reference: str
    calibration: Split
    selection: Split
    test: Split
    recovery: Split
    class_names: tuple[str, ...]
    classes: Tensor | None = None
    notes: tuple[str, ...] = ()
    test_bytes: int | None = None


class Samples(Protocol):
    """Raw samples that are read one by one, where they lie."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> object:
        """Return a text (str), or an image as the path or the bytes of its file."""
        ...


@dataclass(frozen=True)
class RawSplit:
    """Samples of one split as a source reads them, before any model is involved.

    Args:
        samples: Raw samples: texts, or images as paths or bytes of files.
        labels: Raw label of each sample (name or number), or None where there are none.
        names: All class names in the data's own order, where the form of the data fixes one
            (class folders, a ClassLabel column).
    """

    samples: Samples
    labels: tuple[str | int, ...] | None
    names: tuple[str, ...] | None = None


class DataSource(Protocol):
    """One form in which labelled data lies on disk or on the hub. A source is one file."""

    @property
    def name(self) -> str:
        """Return the name it is registered under."""
        ...

    def recognises(self, reference: str) -> bool:
        """Return whether this source can read ``reference`` (a cheap look)."""
        ...

    def read(self, reference: str, options: DataSettings) -> Mapping[str, RawSplit]:
        """Return the splits that the data has by itself: train, validation, test (any of them).

        Data that is not split comes as the one split ``all``.

        Raises:
            DataError: If it cannot be read; the message names file and column.
        """
        ...


DATA_SOURCES: Registry[DataSource] = Registry(
    "data source",
    group="data_sources",
    modules=(
        "compressor.data.digits",
        "compressor.data.saved",
        "compressor.data.tables",
        "compressor.data.images",
        "compressor.data.hub",
    ),
)

ASKED_LAST = ("digits", "saved", "tables", "images", "hub")
"""Built-in sources in the order in which they are asked, after those that other packages add."""
