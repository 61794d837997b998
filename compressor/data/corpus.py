"""Reading running text and conversations: text files, tables, saved data sets, the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from compressor.data.labelled import DataSource
from compressor.data.rows import named_splits, split_named
from compressor.errors import DataError
from compressor.paths import refusal
from compressor.settings import DataSettings

TEXT_SUFFIXES = (".txt", ".md")

Conversation: TypeAlias = list[dict[str, Any]]
"""Messages with ``role`` and ``content``, as chat templates take them."""

_USUAL = ("text", "content", "document", "body", "sentence")
_MESSAGES = ("messages", "conversations", "conversation")


@runtime_checkable
class TableReader(Protocol):
    """A data source whose rows can be read whatever their columns are."""

    def tables(self, reference: str) -> Mapping[str, Any]:
        """Return the `datasets.Dataset` of each split."""
        ...


@dataclass(frozen=True)
class Documents:
    """Texts or conversations of one split, read when they are iterated.

    Args:
        where: What to call them in messages.
        read: Returns an iterator over them, anew at each call.
    """

    where: str
    read: Callable[[], Iterator[str | Conversation]]

    def __iter__(self) -> Iterator[str | Conversation]:
        return self.read()


def read_corpus(
    reference: str, settings: DataSettings, *, find: Callable[[str], DataSource]
) -> dict[str, Documents]:
    """Return the documents of each split: train, validation, test, or ``all``.

    Args:
        reference: A text file, a directory of text files whose names tell splits, or whatever a
            data source reads that has rows.
        settings: Names of columns.
        find: Returns the data source of a reference.

    Raises:
        DataError: If there is no such data, or no column of text or messages.
    """
    path = Path(reference)
    if path.suffix.lower() in TEXT_SUFFIXES and path.is_file():
        return {"all": _files([path])}
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in TEXT_SUFFIXES)
        splits: dict[str, list[Path]] = {}
        for file in files:
            if split := split_named(file.stem):
                splits.setdefault(split, []).append(file)
        if splits:
            return {split: _files(parts) for split, parts in splits.items()}
        if len(files) == 1:
            return {"all": _files(files)}
    source = find(reference)
    if not isinstance(source, TableReader):
        raise DataError(
            f"{reference} holds no text. A language model needs a .txt file, a table with a column "
            "of text or messages (JSONL, Parquet, CSV), a saved data set, or a hub id."
        )
    return _from_tables(source.tables(reference), settings, reference)


def _files(paths: Sequence[Path]) -> Documents:
    def read() -> Iterator[str]:
        for path in paths:
            try:
                yield path.read_text(encoding="utf-8-sig")
            except OSError as error:
                raise DataError(f"Cannot read {path}: {refusal(error)}") from error
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} cannot be read as UTF-8 text: {error}. Convert it to UTF-8."
                ) from error

    return Documents(", ".join(map(str, paths)), read)


def _from_tables(
    tables: Mapping[str, Any], settings: DataSettings, reference: str
) -> dict[str, Documents]:
    return {
        split: _column(table, settings, f"{reference} ({name})")
        for split, (name, table) in named_splits(tables, reference).items()
    }


def _column(table: Any, settings: DataSettings, where: str) -> Documents:
    column = _chosen(table, settings.text_column, where)

    def read() -> Iterator[str | Conversation]:
        for row, value in enumerate(table.select_columns([column])):
            cell = value[column]
            if isinstance(cell, str) or _is_conversation(cell):
                yield cell
            elif cell is not None:
                raise DataError(
                    f"{where}: row {row} of {column!r} is neither text nor a list of messages with "
                    "role and content."
                )

    return Documents(where, read)


def _chosen(table: Any, asked: str | None, where: str) -> str:
    names: list[str] = list(table.column_names)
    if asked is not None:
        if asked not in names:
            raise DataError(
                f"{where}: no column {asked!r} (--text-column). Columns: {', '.join(names)}."
            )
        return asked
    for usual in (*_MESSAGES, *_USUAL):
        if usual in names:
            return usual
    texts = [name for name in names if "string" in str(getattr(table.features[name], "dtype", ""))]
    if len(texts) == 1:
        return texts[0]
    raise DataError(
        f"{where}: cannot tell which column holds the text. Columns: {', '.join(names)}. Name it "
        "with --text-column."
    )


def _is_conversation(cell: object) -> bool:
    return isinstance(cell, list) and all(
        isinstance(turn, dict) and "role" in turn and "content" in turn for turn in cell
    )
