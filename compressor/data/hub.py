"""Data sets on the Hugging Face hub, by id, with a configuration after a colon where needed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from compressor.data.labelled import DATA_SOURCES, RawSplit
from compressor.data.rows import quiet, raw_splits
from compressor.errors import DataError
from compressor.paths import worded
from compressor.settings import DataSettings

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")
_FILE_SUFFIX = re.compile(r"\.(csv|tsv|jsonl?|ndjson|parquet|txt|zip|gz|tar|arrow)$", re.IGNORECASE)


class HubSource:
    """Reads ``owner/name``, ``name`` or ``owner/name:configuration``."""

    name = "hub"

    def recognises(self, reference: str) -> bool:
        """Return whether ``reference`` has the form of a hub id and is nothing on disk."""
        return (
            _ID.fullmatch(reference) is not None
            and _FILE_SUFFIX.search(reference) is None
            and not os.path.lexists(reference)
        )

    def read(self, reference: str, options: DataSettings) -> Mapping[str, RawSplit]:
        """Return the splits, downloaded or from the local cache.

        Raises:
            DataError: As `tables`, or if its columns do not tell text and label.
        """
        return raw_splits(self.tables(reference), options, reference)

    def tables(self, reference: str) -> Mapping[str, Any]:
        """Return the `datasets.Dataset` of each split, downloaded or from the local cache.

        Raises:
            DataError: If the data set is not there, or the machine is offline.
        """
        import datasets

        name, _, configuration = reference.partition(":")
        try:
            with quiet():
                loaded = datasets.load_dataset(name, configuration or None)
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            detail = worded(error).strip().split("\n")[0]
            if _offline() or isinstance(error, ConnectionError):
                raise DataError(
                    f"{reference}: nothing of this name on disk, and as a hub data set it cannot "
                    f"be fetched because this machine is offline ({detail}). Check the path, or "
                    f"download the data set first and name its directory."
                ) from error
            raise DataError(
                f"{reference}: nothing of this name on disk, and the hub does not give it: "
                f"{detail}. Check the path or the id (owner/name, owner/name:configuration)."
            ) from error
        return dict(loaded)


def _offline() -> bool:
    truths = ("1", "true", "yes", "on")
    return any(
        os.environ.get(name, "").lower() in truths
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


DATA_SOURCES.register("hub")(HubSource())
