"""Telling a table's sample column and label column by name, type and content (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compressor.errors import DataError, UsageError

ColumnKind = Literal["text", "image", "class", "integer", "other"]

_LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent", "fine_label", "y")
_TEXT_NAMES = ("text", "sentence", "document", "content", "review", "body", "question", "x")


@dataclass(frozen=True)
class Column:
    """What the first rows of a column look like.

    Args:
        name: Its header.
        kind: ``class`` has its own class names; ``integer`` holds whole numbers, also as text.
        distinct: Number of different values among the rows looked at.
        rows: Number of rows looked at.
        holds_its_name: Whether one of the values is the header's own.
    """

    name: str
    kind: ColumnKind
    distinct: int
    rows: int
    holds_its_name: bool = False

    @property
    def repeats(self) -> bool:
        """Whether values come back often enough to be classes."""
        return self.kind in ("text", "integer", "class") and 2 * self.distinct <= self.rows


@dataclass(frozen=True)
class Chosen:
    """The columns to read; ``label`` is None where the data has no labels."""

    sample: str
    label: str | None


def choose_columns(
    columns: Sequence[Column],
    *,
    where: str,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Chosen:
    """Choose the sample column (an image, else a text) and the label column.

    A named column is taken as it is. Otherwise the label is the one column with class names of its
    own, else the one with a usual name, else the one whose values repeat; the sample is the one
    image column, else the one text column left, else the one with a usual name.

    Args:
        columns: All columns.
        where: File or reference, for messages.
        text_column: What the user named.
        label_column: What the user named.

    Raises:
        DataError: If a named column is missing or the choice is not clear; the message lists the
            columns. Or if the header of the label column, unless it was named, is a label too: then
            the first line is a row.
    """
    for option, named in _options(text_column, label_column):
        if named is not None and named not in {column.name for column in columns}:
            raise DataError(f"{where}: no column {named!r} ({option}). {_listed(columns)}")
    label = label_column or _label(columns, text_column, where)
    if label_column is None and any(c.name == label and c.holds_its_name for c in columns):
        raise DataError(
            f"{where}: the first line looks like a row and no header: {label!r}, its name for the "
            "column of labels, is a label too. Add a line with the columns' names (text, label); "
            f"if it is a header, say so: --label-column {label}."
        )
    sample = text_column or _sample(columns, label, where)
    return Chosen(sample, label)


def refuse_columns(where: str, *, text_column: str | None, label_column: str | None) -> None:
    """Refuse names of columns for data that has none.

    Raises:
        UsageError: If any was named.
    """
    for option, named in _options(text_column, label_column):
        if named is not None:
            raise UsageError(f"{where} has no columns: leave out {option} {named}.")


def _options(text_column: str | None, label_column: str | None) -> list[tuple[str, str | None]]:
    return [("--text-column", text_column), ("--label-column", label_column)]


def _label(columns: Sequence[Column], text_column: str | None, where: str) -> str | None:
    others = [column for column in columns if column.name != text_column]
    classes = [column for column in others if column.kind == "class"]
    usual = [
        column
        for column in others
        if column.name.lower() in _LABEL_NAMES and column.kind in ("class", "integer", "text")
    ]
    for candidates in (
        [column for column in usual if column.kind == "class"] or classes,
        usual,
        [column for column in others if column.repeats],
    ):
        if len(candidates) == 1:
            return candidates[0].name
    if len(columns) == 1 or not others:
        return None  # nothing beside the samples: data without labels
    if not any((classes, usual)) and all(column.kind == "other" for column in others):
        return None
    raise DataError(
        f"{where}: cannot tell which column holds the label. {_listed(columns)} Name it with "
        f"--label-column."
    )


def _sample(columns: Sequence[Column], label: str | None, where: str) -> str:
    others = [column for column in columns if column.name != label]
    images = [column for column in others if column.kind == "image"]
    texts = [column for column in others if column.kind == "text"]
    usual = [column for column in texts if column.name.lower() in _TEXT_NAMES]
    distinct = [column for column in texts if not column.repeats]
    for candidates in (images, texts, usual, distinct):
        if len(candidates) == 1:
            return candidates[0].name
    raise DataError(
        f"{where}: cannot tell which column holds the text. {_listed(columns)} Name it with "
        f"--text-column."
    )


def _listed(columns: Sequence[Column]) -> str:
    return "Columns: " + ", ".join(f"{column.name} ({column.kind})" for column in columns) + "."
