"""integrity.json: hash and size of every file of a saved directory, and the probe of its model.

It tells damage and unintended changes. It is no signature: whoever can change the weights can
change it too. Its own hash, got from somewhere that can be trusted, closes that gap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from compressor.checkpoint.probe import Probe
from compressor.errors import CheckpointError
from compressor.jsonfile import read_object, validated
from compressor.models.weights import hash_files, is_plain_name

NAME = "integrity.json"
DOCUMENTS = ("README.md", "report.html", ".gitattributes", ".gitignore")
"""Files for people: they may be edited, and nothing that runs reads them."""


class FileRecord(BaseModel):
    """Size and SHA-256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Integrity(BaseModel):
    """What a directory was when it was saved.

    Args:
        version: Version of this schema.
        files: Every other file of the directory, by name.
        probe: Made-up inputs and the model's logits on them.
        unprobed: Why there is no probe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    files: dict[str, FileRecord]
    probe: Probe | None = None
    unprobed: str | None = None


def write_integrity(directory: Path, probe: Probe | str) -> None:
    """Write integrity.json for the files that lie in ``directory``.

    Args:
        directory: A directory that is otherwise complete.
        probe: The probe of its model, or why there is none.
    """
    record = Integrity(
        files={path.name: record_of(path) for path in sorted(directory.iterdir())},
        probe=probe if isinstance(probe, Probe) else None,
        unprobed=probe if isinstance(probe, str) else None,
    )
    (directory / NAME).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_integrity(directory: Path) -> Integrity | None:
    """Return what integrity.json records, or None where there is none (an older directory).

    Raises:
        CheckpointError: If it is damaged, of a newer version, or names files elsewhere.
    """
    path = directory / NAME
    if not path.exists() and not path.is_symlink():
        return None
    record = validated(Integrity, read_object(path, CheckpointError), str(path), CheckpointError)
    for name in record.files:
        if not is_plain_name(name):
            raise CheckpointError(f"{path} names {name!r}, which is no file of the directory.")
    return record


def record_of(path: Path) -> FileRecord:
    """Return size and hash of a file."""
    return FileRecord(bytes=path.stat().st_size, sha256=hash_files([path]))
