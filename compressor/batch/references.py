"""Paths of a manifest, taken from its own directory; what names no file stays a name."""

from __future__ import annotations

from pathlib import Path

from compressor.batch.keys import Key
from compressor.paths import state


def resolve(value: str | Path, key: Key, base: Path) -> str | Path:
    """Return a path as seen from the working directory.

    Args:
        value: As written: a path relative to ``base``, an absolute one, one that begins with
            ``~``, or, for a key that allows it, a name.
        key: What it was written under.
        base: Directory of the manifest.

    Raises:
        FileNotFoundError: If it can only be a path, and there is nothing.
    """
    if key.is_path:
        path = base / Path(value).expanduser()
        if not path.exists():
            raise FileNotFoundError(_missing(path))
        return path
    name, function = split_factory(str(value))
    path = base / Path(name).expanduser()
    if path.exists() and not _is_bare_directory(name, path):
        return f"{path}{function}"
    if name.startswith(("./", "../", "/", "~")):
        raise FileNotFoundError(_missing(path))
    return value


def _missing(path: Path) -> str:
    return f"{path} {state(path)}; paths are taken from the manifest's directory"


def split_factory(reference: str) -> tuple[str, str]:
    """Split ``path/to/file.py:factory`` into path and ``:factory``; the latter may be empty."""
    path, colon, function = reference.rpartition(":")
    return (path, colon + function) if path.endswith(".py") else (reference, "")


def _is_bare_directory(name: str, path: Path) -> bool:
    """Return whether an empty directory only happens to be called as a model or data set is."""
    return "/" not in name and path.is_dir() and not any(path.iterdir())
