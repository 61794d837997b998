"""Tables on disk: CSV, TSV, JSON lines and Parquet, one file or a directory of split files."""

from __future__ import annotations

import csv
import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from compressor.data.labelled import DATA_SOURCES, RawSplit
from compressor.data.rows import quiet, raw_splits, split_named
from compressor.errors import DataError
from compressor.paths import worded
from compressor.settings import DataSettings

_BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
# Files that describe data sets or accompany images rather than hold rows.
_NOT_ROWS = frozenset(
    ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
)
# What readers raise on files that are broken, or of a kind they do not know.
_READING_ERRORS = (ValueError, OSError, LookupError, TypeError, ArithmeticError, RuntimeError)


class TableSource:
    """Reads tables, every cell of a CSV or TSV file as the text that stands there."""

    name = "tables"

    def recognises(self, reference: str) -> bool:
        """Return whether ``reference`` is a table, or a directory whose files are tables.

        Tables beside other folders count only where their names tell splits: class folders may
        carry a list of their files.
        """
        if not reference:
            return False  # a Path would take it for the working directory
        path = Path(reference)
        if path.is_dir():
            files = _tables_in(path)
            folders = any(entry.is_dir() for entry in path.iterdir() if entry.name[0] != ".")
            return bool(files) and (not folders or any(split_named(file.stem) for file in files))
        return path.suffix.lower() in _BUILDERS and path.exists()

    def read(self, reference: str, options: DataSettings) -> Mapping[str, RawSplit]:
        """Return the splits; in a directory the file names tell which is which.

        Raises:
            DataError: As `tables`, or if the columns do not tell text and label.
        """
        return raw_splits(self.tables(reference), options, reference)

    def tables(self, reference: str) -> Mapping[str, Any]:
        """Return the `datasets.Dataset` of each split.

        Raises:
            DataError: If a file cannot be parsed or the files of a directory tell no splits.
        """
        path = Path(reference)
        files = {"all": [path]} if path.is_file() else _split_files(path)
        tables = {}
        for split, parts in files.items():
            if all(part.stat().st_size == 0 for part in parts):
                raise DataError(f"{parts[0]} is empty: expected a header and rows.")
            tables[split] = _load(parts)
        return tables


def _tables_in(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and path.suffix.lower() in _BUILDERS and path.name not in _NOT_ROWS
    )


def _split_files(directory: Path) -> dict[str, list[Path]]:
    files = _tables_in(directory)
    if len(files) == 1:
        return {"all": files}
    splits: dict[str, list[Path]] = {}
    for file in files:
        split = split_named(file.stem)
        if split is not None:
            splits.setdefault(split, []).append(file)
    listed = ", ".join(file.name for file in files[:20])
    if not splits:
        raise DataError(
            f"{directory}: cannot tell which file is which split; expected names with train, "
            f"validation (or dev, val) and test. Found: {listed}. Or name one file."
        )
    for split, parts in splits.items():
        if len({part.suffix.lower() for part in parts}) > 1:
            raise DataError(
                f"{directory}: the {split} split lies there in several formats. Found: {listed}. "
                f"Keep one of them, or name one file."
            )
    return splits


def _load(files: list[Path]) -> Any:
    """Return the `datasets.Dataset` of files of one form."""
    import datasets
    import pyarrow as pa

    _refuse_packed(files)
    builder = _BUILDERS[files[0].suffix.lower()]
    options = _csv_options(files[0]) if builder == "csv" else {}
    try:
        with quiet():
            table = datasets.load_dataset(
                builder,
                data_files={"train": [glob.escape(str(file)) for file in files]},
                split="train",
                **options,
            )
            table.data.table.validate(full=True)  # texts may hold bytes that are no UTF-8
            return table
    except (*_READING_ERRORS, datasets.exceptions.DatasetsError, pa.ArrowException) as error:
        if "corresponds to no data" in str(error):  # how `datasets` says that there are no rows
            raise DataError(f"{files[0]} is empty: it has a header, but no rows.") from error
        cause: BaseException = error.__cause__ or error
        names = ", ".join(str(file) for file in files)
        cache = str(datasets.config.HF_DATASETS_CACHE)
        if isinstance(cause, OSError) and str(cause.filename or "").startswith(cache):
            raise DataError(
                f"{names}: cannot write the table cache {cache} ({cause.strerror}). Set "
                f"HF_DATASETS_CACHE to a directory that can be written, with room in it."
            ) from error
        raise DataError(f"{names} cannot be read as {builder}: {_first_line(cause)}") from error


def _refuse_packed(files: list[Path]) -> None:
    """Refuse what `datasets` would unpack: it judges by the first bytes, whatever the name says."""
    from datasets.utils.extract import Extractor

    for file in files:
        form = Extractor.infer_extractor_format(file)
        if form is not None:
            raise DataError(
                f"{file} begins like {form}, an archive or a compressed file, not like a table. "
                "Unpack it, and name what it holds."
            )


def _csv_options(file: Path) -> dict[str, Any]:
    """Read the header, so that every column can be asked for as text.

    Left to itself the reader turns texts such as "null" and "NA" into missing values and "007"
    into 7. TSV files are written without quoting, so a quotation mark there is a character.
    """
    import datasets

    tabs = file.suffix.lower() == ".tsv"
    separator = "\t" if tabs else ","
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream, delimiter=separator, quoting=quoting), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a UTF-8 text table: {error}. Convert it first.") from error
    if not header or len(set(header)) < len(header):
        raise DataError(f"{file}: expected a header with one name a column, found {header}.")
    return {
        "sep": separator,
        "quoting": quoting,
        "keep_default_na": False,
        "na_filter": False,
        "encoding": "utf-8-sig",
        "features": datasets.Features({name: datasets.Value("string") for name in header}),
    }


def _first_line(error: BaseException) -> str:
    return worded(error).strip().split("\n")[0]


DATA_SOURCES.register("tables")(TableSource())
