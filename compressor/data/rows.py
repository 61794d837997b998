"""Turning tables of the `datasets` library into raw splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from compressor.data.columns import Column, ColumnKind, choose_columns
from compressor.data.labelled import RawSplit
from compressor.errors import DataError
from compressor.settings import DataSettings

ROWS_LOOKED_AT = 2_000
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def split_named(words: str) -> str | None:
    """Return which split a file, folder or split name speaks of, or None.

    ``SST-2_dev.tsv`` is validation, ``train-00000-of-00002`` is train.
    """
    for separator in "-_. ":
        words = words.replace(separator, " ")
    found = {_SPLIT_WORDS[word] for word in words.lower().split() if word in _SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep `datasets` from drawing its own progress bars."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


class Cells:
    """One column of a table, read row by row."""

    def __init__(self, table: Any, column: str, *, image: bool) -> None:
        self._table = table
        self._column = column
        self._image = image

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int, /) -> object:
        """Return the text, or the bytes or path of the image file, or None for an empty cell."""
        value = self._table[int(index)][self._column]
        if self._image and value is not None:
            from pathlib import Path

            return value["bytes"] if value["bytes"] is not None else Path(value["path"])
        return value


def raw_splits(
    tables: Mapping[str, Any], options: DataSettings, reference: str
) -> dict[str, RawSplit]:
    """Return the raw splits of `datasets.Dataset` tables.

    Columns are chosen on the first split that is read; the others follow it where they have the
    same columns.

    Args:
        tables: A table for each split, under any name.
        options: Names of columns.
        reference: What the user wrote, for messages.

    Raises:
        DataError: If columns cannot be told, labels are missing in some rows, or two splits have
            one name.
    """
    return {
        split: _raw_split(table, options, f"{reference} ({name})")
        for split, (name, table) in named_splits(tables, reference).items()
    }


def named_splits(tables: Mapping[str, Any], reference: str) -> dict[str, tuple[str, Any]]:
    """Return name and `datasets.Dataset` of each split; a lone one is ``all``.

    Args:
        tables: By their own names.
        reference: The data, as named.

    Raises:
        DataError: If no name tells a split, or two tell the same one.
    """
    splits: dict[str, tuple[str, Any]] = {}
    for name, table in tables.items():
        split = "all" if len(tables) == 1 else split_named(str(name))
        if split is None:
            continue
        if split in splits:
            raise DataError(f"{reference}: two splits are both {split}. Found: {list(tables)}.")
        splits[split] = (str(name), table)
    if not splits:
        raise DataError(
            f"{reference}: no split is called train, validation or test. Found: {list(tables)}."
        )
    return splits


def _raw_split(table: Any, options: DataSettings, where: str) -> RawSplit:
    import datasets

    if len(table) == 0:
        return RawSplit(samples=(), labels=())
    table = table.with_format(None)
    features = table.features
    chosen = choose_columns(
        _columns(table),
        where=where,
        text_column=options.text_column,
        label_column=options.label_column,
    )
    image = isinstance(features[chosen.sample], datasets.Image)
    if image:
        table = table.cast_column(chosen.sample, datasets.Image(decode=False))
    samples = Cells(table.select_columns([chosen.sample]), chosen.sample, image=image)
    if chosen.label is None:
        return RawSplit(samples, None)
    feature = features[chosen.label]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    values = table.select_columns([chosen.label])[:][chosen.label]
    return RawSplit(samples, _labels(values, names, f"{where}, column {chosen.label!r}"), names)


def _labels(
    values: list[Any], names: tuple[str, ...] | None, where: str
) -> tuple[str | int, ...] | None:
    """Return names or whole numbers; None where no row has a label (a hidden test set)."""
    missing = [
        row
        for row, value in enumerate(values)
        if value is None or (isinstance(value, str) and not value.strip()) or value == -1
    ]
    if len(missing) == len(values):
        return None
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(values)} rows have no label, the first is row "
            f"{missing[0]} (counted from 0). Remove these rows or label them."
        )
    if names is not None:
        if max(values) >= len(names):
            raise DataError(
                f"{where}: holds class {max(values)}, but the table names {len(names)} classes "
                f"(0 to {len(names) - 1}). The table is damaged; save it again."
            )
        return tuple(names[value] for value in values)
    for row, value in enumerate(values):
        if isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer()):
            continue
        raise DataError(
            f"{where}: row {row} holds {value!r}, which is no class; expected a name or a whole "
            f"number. Name another column with --label-column."
        )
    return tuple(value if isinstance(value, str) else int(value) for value in values)


def _columns(table: Any) -> list[Column]:
    import datasets

    head = table.select(range(min(len(table), ROWS_LOOKED_AT)))
    columns = []
    for name, feature in table.features.items():
        kind: ColumnKind = "other"
        values: list[Any] = []
        if isinstance(feature, datasets.Image):
            kind = "image"
        elif isinstance(feature, datasets.ClassLabel) or (
            isinstance(feature, datasets.Value) and _countable(feature.dtype)
        ):
            values = head.select_columns([name])[:][name]
            kind = _kind(feature, values)
        found = set(values)
        columns.append(Column(name, kind, len(found), len(head), name in map(str, found)))
    return columns


def _countable(dtype: str) -> bool:
    return "string" in dtype or dtype == "bool" or dtype.startswith(("int", "uint"))


def _kind(feature: Any, values: list[Any]) -> ColumnKind:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if "string" not in feature.dtype:
        return "integer"
    written = [value for value in values if value]
    return "integer" if written and all(_is_integer(value) for value in written) else "text"


def _is_integer(value: str) -> bool:
    return value.strip().removeprefix("-").isdecimal()
