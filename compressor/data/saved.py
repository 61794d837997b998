"""Directories that ``datasets.save_to_disk`` wrote: one table, or a table for each split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.data.labelled import DATA_SOURCES, RawSplit
from compressor.data.rows import raw_splits
from compressor.errors import DataError
from compressor.paths import worded
from compressor.settings import DataSettings


class SavedSource:
    """Reads a saved `Dataset` or `DatasetDict` of texts or images, memory-mapped."""

    name = "saved"

    def recognises(self, reference: str) -> bool:
        """Return whether ``reference`` carries the files that save_to_disk writes."""
        path = Path(reference)
        return (path / "dataset_dict.json").is_file() or (
            (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
        )

    def read(self, reference: str, options: DataSettings) -> Mapping[str, RawSplit]:
        """Return the splits.

        Raises:
            DataError: If the directory is damaged, or its columns do not tell text and label.
        """
        return raw_splits(self.tables(reference), options, reference)

    def tables(self, reference: str) -> Mapping[str, Any]:
        """Return the `datasets.Dataset` of each split.

        Raises:
            DataError: If the directory is damaged.
        """
        import datasets

        try:
            loaded = datasets.load_from_disk(reference)
        except Exception as error:  # damage shows wherever the library first runs into it
            raise DataError(
                f"{reference} looks like a saved dataset but cannot be loaded: "
                f"{worded(error).strip()}. Save it again with "
                f"Dataset.save_to_disk."
            ) from error
        return {"all": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


DATA_SOURCES.register("saved")(SavedSource())
