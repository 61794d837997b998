"""Results kept on disk under what they were made of: safetensors and JSON, never pickle.

An entry's key is plain data that names everything the result depends on: the model's weights, the
data, settings, versions, the code. The file is named by the key's hash and holds the key itself
and a digest of its contents, so that an entry that is damaged, or of another key, is never taken.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compressor.distributed import ALONE, Group
from compressor.fingerprint import hash_of
from compressor.paths import worded

Key: TypeAlias = Mapping[str, object]
"""Plain data (what JSON holds) by name: what a result was made of."""

Tensors: TypeAlias = dict[str, Tensor]

SEPARATOR = "-"
"""Between an entry's name and the hash of its key in the name of its file."""

PATIENCE = 0.2
"""Seconds of waiting for a lock before a person is told of it."""


class Cache:
    """A directory of results, safe to share between processes.

    A result is asked for together with what makes it. Whoever asks first makes it under a lock,
    and others who ask meanwhile wait for that. Files are written beside their place and renamed.
    A disk that is full, or fails, costs the entry and not the run.

    Args:
        directory: Where entries lie; it is made where it is missing.
        made_of: What every result depends on.
        note: Told of entries that are damaged or out of date.
        own: Whether the directory is this run's alone: then an entry made of other data or of
            another model is worth a note too, and not only one of another version.
        group: Processes that make results together; the first one alone reads and writes.
    """

    def __init__(
        self,
        directory: Path,
        made_of: Key,
        *,
        note: Callable[[str], None] = lambda message: None,
        own: bool = False,
        group: Group = ALONE,
    ) -> None:
        self._group = group
        self.directory = directory
        self._made_of = dict(made_of)
        self._note, self._own = note, own
        self._told: set[str] = set()

    def under(self, of: Key) -> Cache:
        """Return the same cache for results that depend on more: ``of`` is in all their keys."""
        narrower = copy.copy(self)
        narrower._made_of = {**self._made_of, **of}
        return narrower

    def tensors(self, name: str, of: Key, make: Callable[[], Tensors]) -> Tensors:
        """Return tensors that were made before, or make and keep them.

        Either way they come contiguous and on the CPU, so that what is computed from them is the
        same to the last bit.

        Args:
            name: What they are, a word.
            of: What they depend on besides what every result does.
            make: Makes them by name; none may be empty of name.
        """

        def write(made: Tensors, path: Path, key: str) -> None:
            save_file(made, path, metadata={"key": key, "digest": _digest(made)})

        def clean() -> Tensors:
            return {part: _owned(tensor) for part, tensor in make().items()}

        found: Tensors = self._entry(
            name,
            ".safetensors",
            of,
            read=_read_tensors,
            make=clean,
            write=write,
            give=self._group.given,
        )
        return found

    def record(self, name: str, of: Key, make: Callable[[], Any]) -> Any:
        """Return plain data that was made before, or make and keep it. Floats come back exactly."""

        def write(made: object, path: Path, key: str) -> None:
            text = json.dumps(made)
            written = {"key": key, "digest": _text_digest(text), "value": made}
            path.write_text(json.dumps(written), encoding="utf-8")

        return self._entry(
            name, ".json", of, read=_read_record, make=make, write=write, give=self._group.told
        )

    def _entry(
        self,
        name: str,
        suffix: str,
        of: Key,
        *,
        read: Callable[[Path, str], Any],
        make: Callable[[], Any],
        write: Callable[[Any, Path, str], None],
        give: Callable[[Any], Any],
    ) -> Any:
        key = json.dumps({**self._made_of, **of}, sort_keys=True)
        path = self.directory / f"{name}{SEPARATOR}{hash_of(key)}{suffix}"
        if not self._group.leads:
            found = give(None)
            return make() if found is None else found
        with self._locked(path, name):
            found = give(self._read(path, key, name, read))
            if found is not None:
                return found
            made = make()
            try:
                _write_beside(path, lambda temporary: write(made, temporary, key))
            except (OSError, SafetensorError) as error:
                self._tell_once(
                    "write", f"Cannot keep results in {self.directory}: {worded(error)}."
                )
            return made

    def _read(self, path: Path, key: str, name: str, read: Callable[[Path, str], Any]) -> Any:
        """Return what an entry holds, None where there is none that can be taken."""
        if not path.exists():
            self._tell_of_stale(name, path.suffix, key)
            return None
        try:
            return read(path, key)
        except (_DamagedError, OSError) as error:
            self._note(f"{path} is damaged ({worded(error)}); it is made again.")
            return None

    @contextlib.contextmanager
    def _locked(self, path: Path, name: str) -> Iterator[None]:
        """Hold the entry's lock; a process that dies lets go of it."""
        lock = FileLock(path.with_name(f".{path.stem}.lock"))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=PATIENCE)
            except Timeout:
                self._note(f"Waiting for another process, which is making the {name}.")
                lock.acquire()
        except OSError as error:
            self._tell_once("write", f"Cannot keep results in {self.directory}: {worded(error)}.")
        try:
            yield
        finally:
            lock.release()

    def _tell_of_stale(self, name: str, suffix: str, key: str) -> None:
        """Say, once, in what the nearest entry of this name differs from the one asked for."""
        wanted = json.loads(key)
        differing = [
            {part for part in wanted | other if wanted.get(part) != other.get(part)}
            for file in self.directory.glob(f"{name}{SEPARATOR}*{suffix}")
            if (other := _key_in(file)) is not None
        ]
        nearest = min(differing, key=len, default=set())
        if nearest and (self._own or nearest <= {"code", "versions"}):
            self._tell_once(
                "stale",
                f"{self.directory} holds results of another run, which differs in "
                f"{', '.join(sorted(nearest))}: the {name} and what follows are made anew.",
            )

    def _tell_once(self, topic: str, message: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            self._note(message)


class _DamagedError(Exception):
    """A file does not hold what was written."""


def _read_tensors(path: Path, key: str) -> Tensors:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies lie as torch aligns its own memory: a kernel's rounding can depend on that.
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _DamagedError(str(error)) from error
    if metadata.get("key") != key or metadata.get("digest") != _digest(found):
        raise _DamagedError("its contents do not match their digest")
    return found


def _read_record(path: Path, key: str) -> Any:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        if written["key"] == key and written["digest"] == _text_digest(
            json.dumps(written["value"])
        ):
            return written["value"]
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(str(error)) from error
    raise _DamagedError("its contents do not match their digest")


def _key_in(path: Path) -> dict[str, object] | None:
    """Return the key that a file says it was made of; None if it cannot be read."""
    try:
        if path.suffix == ".json":
            key = json.loads(path.read_text(encoding="utf-8"))["key"]
        else:
            with safe_open(path, framework="pt") as file:
                key = (file.metadata() or {})["key"]
        found = json.loads(key)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and contents."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\0{tensor.dtype}{tuple(tensor.shape)}\0".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_beside(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under another name, then rename it: it is there whole or not at all.

    What a killed process left under that name is written over, for the entry's lock is held.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _owned(tensor: Tensor) -> Tensor:
    """Return the tensor contiguous, on the CPU, and with no other tensor in its storage."""
    plain = tensor.detach().cpu().contiguous()
    alone = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
    return plain if alone else plain.clone()
