"""From what a person wrote to splits that a model can be run on."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.data.digits import REFERENCE as DIGITS
from compressor.data.labelled import ASKED_LAST, DATA_SOURCES, DataSource, LabelledData, RawSplit
from compressor.data.labels import ClassMap, map_labels
from compressor.data.pictures import ImageReader
from compressor.data.reading import Drawn, Reader
from compressor.data.splits import Draws, draw_splits
from compressor.data.texts import TextReader
from compressor.data.windows import load_windows
from compressor.errors import DataError, NoSuchDataError
from compressor.models.imagenet import imagenet_synsets
from compressor.models.source import LoadedModel
from compressor.paths import refusal, state
from compressor.progress import SILENT, Progress
from compressor.settings import DataSettings

SPLITS = ("calibration", "selection", "test", "recovery")

CALIBRATION = 1024
"""Calibration samples where nobody says how many."""


def load_data(
    settings: DataSettings,
    model: LoadedModel,
    *,
    seed: int,
    splits: Collection[str] = SPLITS,
    recovery_steps: int = 0,
    progress: Progress = SILENT,
) -> LabelledData:
    """Read, split and map labelled data to a model's classes, or texts to windows of tokens.

    Every note of the result is also given to ``progress.note``. Data without labels is loaded too
    (its splits have ``labels`` None): measuring works without, evaluating does not.

    Args:
        settings: Which data, and how it is read and split.
        model: The model whose tokenizer or transform, and whose classes, the data is for.
        seed: Seed of every draw.
        splits: Which splits are read; the others are drawn alike, and come empty.
        recovery_steps: Read what so many batches can learn from, to recover accuracy.
        progress: Told what is being read.

    Raises:
        NoSuchDataError: If there is no such data.
        DataError: If it cannot be read, its labels do not map to the model's classes, or it is of
            another modality than the model.
    """
    with _refusals_told(settings.data):
        return _load(
            settings,
            model,
            seed=seed,
            splits=splits,
            recovery_steps=recovery_steps,
            progress=progress,
        )


def _load(
    settings: DataSettings,
    model: LoadedModel,
    *,
    seed: int,
    splits: Collection[str],
    recovery_steps: int,
    progress: Progress,
) -> LabelledData:
    if model.task != "classification":
        return load_windows(
            settings,
            model,
            seed=seed,
            find=find_source,
            recovery_steps=recovery_steps,
            progress=progress,
        )
    raw = find_source(settings.data).read(settings.data, settings)
    if settings.test_data is not None:
        raw = _with_test_data(raw, settings)
    raw, notes = _with_labels_where_needed(raw)
    _check_modality(raw, model, settings.data)
    reader = _reader(settings, model)
    classes = _classes(raw, model)
    draws = draw_splits(
        {name: _drawable(split, classes) for name, split in raw.items()},
        calibration=settings.calibration or CALIBRATION,
        selection=settings.selection,
        limit=settings.limit,
        recovery=recovery_steps * reader.batch_size,
        seed=seed,
    )
    notes += [*(classes.notes if classes else ()), *draws.notes]
    return _read_all(
        settings,
        model,
        reader,
        raw=raw,
        classes=classes,
        draws=draws,
        splits=splits,
        notes=notes,
        progress=progress,
    )


@contextlib.contextmanager
def _refusals_told(reference: str) -> Iterator[None]:
    """Turn what the system raises while data is read into an error that names the path.

    Raises:
        NoSuchDataError: If no path can be as long as the one that was named.
        DataError: If a file or directory must not be read, or the disk fails.
    """
    try:
        yield
    except OSError as error:
        fault = NoSuchDataError if error.errno == errno.ENAMETOOLONG else DataError
        # Of a file that was only looked for in the directory nobody has heard.
        known = error.filename is not None and os.path.lexists(error.filename)
        where = error.filename if known else reference
        raise fault(f"Cannot read the data {where}: {refusal(error)}") from error


def find_source(reference: str) -> DataSource:
    """Return the first source that recognises ``reference``.

    Raises:
        NoSuchDataError: If nothing lies there.
        DataError: If no source recognises what does; the message names what lies near, and the
            forms that are read.
    """
    # Registration follows imports, so it cannot be the order: what looks like a hub id may be more.
    asked = [name for name in DATA_SOURCES.names() if name not in ASKED_LAST]
    for name in (*asked, *ASKED_LAST):
        source = DATA_SOURCES.get(name)
        if source.recognises(reference):
            return source
    path = Path(reference)
    if path.exists():
        found = "an empty directory" if path.is_dir() else f"a {path.suffix or 'nameless'} file"
        fault, problem = DataError, f"{reference} is {found}, which no data source reads."
    else:
        fault = NoSuchDataError
        problem = f"No such data: {reference} {state(path)}.{_nearest(path)}"
    raise fault(
        f"{problem} Expected class folders of images, a CSV, TSV, JSONL or Parquet file or a "
        f"directory of them, a directory of datasets.save_to_disk, a hub data set id, or "
        f"{DIGITS}; for language models also a .txt or .md file."
    )


def _with_test_data(raw: Mapping[str, RawSplit], settings: DataSettings) -> dict[str, RawSplit]:
    """Return the splits with other data's test part, or all of it, as test."""
    assert settings.test_data is not None
    other = find_source(settings.test_data).read(settings.test_data, settings)
    test = next((other[name] for name in ("test", "all", "validation") if name in other), None)
    if test is None:
        raise DataError(f"{settings.test_data} has no test part. Found: {', '.join(other)}.")
    kept = {"train" if name == "all" else name: split for name, split in raw.items()}
    return {**kept, "test": test}


def _nearest(path: Path) -> str:
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.exists()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def _with_labels_where_needed(
    raw: Mapping[str, RawSplit],
) -> tuple[dict[str, RawSplit], list[str]]:
    """Leave out empty splits, and unlabelled ones that would take a labelled one's place.

    Public benchmarks often hide the labels of their test split.
    """
    kept = {name: split for name, split in raw.items() if len(split.samples)}
    if not kept:
        raise DataError("The data is empty: no split has a sample. Check the reference.")
    labelled = [name for name, split in kept.items() if split.labels is not None]
    if not labelled:
        return kept, ["The data has no labels; accuracy cannot be measured on it."]
    notes = []
    for name in ("validation", "test"):
        if name in kept and name not in labelled:
            del kept[name]
            notes.append(f"The {name} split has no labels and is not used.")
    if "train" in kept and "train" not in labelled:
        notes.append("The train split has no labels; calibration goes without.")
    return kept, notes


def _check_modality(raw: Mapping[str, RawSplit], model: LoadedModel, reference: str) -> None:
    if model.modality == "tensor":
        raise DataError(
            f"It is not known what {model.reference} takes. For images give --input-size, --mean "
            f"and --std; for anything else pass your own batches to compressor.compress in Python."
        )
    first = next(iter(raw.values())).samples[0]
    held = "text" if isinstance(first, str) else "image"
    if held != model.modality:
        raise DataError(
            f"{reference} holds {held}s, but {model.reference} takes {model.modality}s. Name data "
            f"that fits the model."
        )


def _reader(settings: DataSettings, model: LoadedModel) -> Reader:
    if model.modality == "text":
        return TextReader(
            model,
            max_length=settings.max_length,
            batch_size=settings.batch_size,
            strict=settings.strict,
        )
    return ImageReader(model, batch_size=settings.batch_size, strict=settings.strict)


def _classes(raw: Mapping[str, RawSplit], model: LoadedModel) -> ClassMap | None:
    labelled = [split for split in raw.values() if split.labels is not None]
    if not labelled:
        return None
    return map_labels(
        {label for split in labelled for label in split.labels or ()},
        class_names=model.class_names,
        num_classes=model.num_classes,
        order=labelled[0].names,
        synsets=imagenet_synsets,
    )


def _drawable(split: RawSplit, classes: ClassMap | None) -> NDArray[np.int64] | int:
    if split.labels is None or classes is None:
        return len(split.samples)
    return np.array([classes.position[label] for label in split.labels], dtype=np.int64)


def _read_all(
    settings: DataSettings,
    model: LoadedModel,
    reader: Reader,
    *,
    raw: Mapping[str, RawSplit],
    classes: ClassMap | None,
    draws: Draws,
    splits: Collection[str],
    notes: list[str],
    progress: Progress,
) -> LabelledData:
    read = {}
    for name in SPLITS:
        draw = getattr(draws, name)
        if name not in splits:
            draw = replace(draw, indices=draw.indices[:0])
        drawn = Drawn(name, draw, raw[draw.origin], classes.position if classes else {})
        read[name] = reader.read(drawn, progress=progress)
        notes += read[name].notes
    seen = read["calibration"].digests | read["selection"].digests | read["recovery"].digests
    twice = len(seen & read["test"].digests)
    if twice:
        notes.append(
            f"{twice} distinct test samples are also calibration, selection or recovery samples "
            f"(the data holds duplicates)."
        )
    for note in notes:
        progress.note(note)
    names = model.class_names or tuple(str(index) for index in range(model.num_classes or 0))
    covered = classes.logits if classes else None
    return LabelledData(
        reference=settings.data,
        calibration=read["calibration"].split,
        selection=read["selection"].split,
        test=read["test"].split,
        recovery=read["recovery"].split,
        class_names=classes.names if classes else names,
        classes=None if covered is None else torch.tensor(covered),
        notes=tuple(notes),
    )
