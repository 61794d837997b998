"""What a job is, by content: a hash of its settings and of the files that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from compressor.batch.keys import job_keys
from compressor.batch.references import split_factory
from compressor.figures import versions
from compressor.fingerprint import code_version, hash_of
from compressor.settings import CompressSettings

LARGEST_READ = 1 << 30
"""Bytes of a directory that are read to tell what it holds; of a larger one, names, sizes and
times of its files have to do."""


def job_hash(settings: CompressSettings) -> str:
    """Return a hash of everything that a job's result depends on.

    Where files lie, and what the job is called, do not matter; what the files hold, the versions
    of the libraries and this package's own code do. A name as of a hub stands for itself.
    """
    values: dict[str, object] = {}
    for name, key in job_keys().items():
        holder: BaseModel = settings if key.part is None else getattr(settings, key.part)
        value = getattr(holder, name)
        if value is not None and (key.is_path or key.is_reference):
            values[name] = fingerprint(str(value))
        else:
            values[name] = holder.model_dump(mode="json", include={name})[name]
    return hash_of({"settings": values, "versions": versions(), "code": code_version()})


@cache
def fingerprint(reference: str) -> str:
    """Return a hash of the file or directory that a reference names; else the reference itself."""
    name, function = split_factory(reference)
    path = Path(name)
    if path.is_file():
        return _file_hash(path).hex() + function
    if not path.is_dir():
        return reference
    files = sorted(file for file in path.rglob("*") if file.is_file())
    whole = sum(file.stat().st_size for file in files) <= LARGEST_READ
    digest = hashlib.sha256()
    for part in _directory_parts(path, files, whole=whole):
        digest.update(part)
    return digest.hexdigest()


def _directory_parts(path: Path, files: list[Path], *, whole: bool) -> Iterator[bytes]:
    for file in files:
        yield file.relative_to(path).as_posix().encode("utf-8", "surrogateescape") + b"\0"
        if whole:
            yield _file_hash(file)
        else:
            stat = file.stat()
            yield f"{stat.st_size} {stat.st_mtime_ns}\0".encode()


def _file_hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
