"""Writing files and directories whole or not at all, whatever ends the process meanwhile.

Everything is written in a temporary directory beside its place, forced to the disk, and moved by
one system call. A directory that is replaced changes places with the new one in that call, where
the file system can; a process that is killed leaves the old or the new one, never neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from compressor.errors import CheckpointError, OutputExistsError
from compressor.paths import worded

if sys.platform != "win32":
    import fcntl

LONGEST_NAME = 200
"""Bytes of a name that its temporary neighbour carries; file systems allow 255 in all."""

_HELD = (signal.SIGINT, signal.SIGTERM)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or directory at; it moves to ``path`` when all went well.

    Raises:
        CheckpointError: If there is no space, no permission, or the disk fails.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with sibling(path) as temporary:
            written = temporary / path.name  # writers and readers go by its suffix
            yield written
            if written.is_dir():
                flush(written)
                move_into_place(written, path, overwrite=False)
            else:
                flush(temporary)
                written.replace(path)
                _flush_entry(path.parent)


def write_file(path: Path, text: str) -> None:
    """Write a text file whole or not at all, making the directories above it.

    Raises:
        CheckpointError: If there is no space, no permission, or the disk fails.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside ``path`` while they were writing it.

    What a living process is writing is locked by it, and stays.
    """
    mark = re.compile(re.escape(_prefix(path)) + r"[a-z0-9_]{8}")  # as tempfile names them
    with contextlib.suppress(OSError):
        for left in path.parent.iterdir():
            if mark.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
                with _locked(left) as free:
                    if free:
                        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what a failing disk raises into one error that names what was to be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot write {path}: {worded(error)}. Nothing was left there; check space and "
            "permissions, or choose another --out."
        ) from error


@contextlib.contextmanager
def sibling(path: Path) -> Iterator[Path]:
    """Make a temporary directory beside ``path``; whatever happens it is gone afterwards."""
    remove_leftovers(path)
    temporary: Path | None = None
    lock = contextlib.ExitStack()
    try:
        with signals_held():  # one that arrives here ends this block, after the assignment
            temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
            lock.enter_context(_locked(temporary))
        os.chmod(temporary, 0o777 & ~umask())  # mkdtemp lets only the owner in
        yield temporary
    finally:
        with signals_held():
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            lock.close()


def move_into_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a directory to ``path`` in one step; with ``overwrite`` it may replace one there.

    Raises:
        OutputExistsError: If another process has written there meanwhile.
        OSError: If the file system refuses.
    """
    with signals_held():
        if overwrite and path.is_dir():
            if not _exchange(temporary, path):
                _step_aside(temporary, path)
        else:
            try:
                temporary.rename(path)  # onto an empty directory too
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise OutputExistsError(
                    f"{path} was written by another process meanwhile. It was left as it is; "
                    "choose another --out, or pass --overwrite."
                ) from error
        _flush_entry(path.parent)


def flush(directory: Path) -> None:
    """Force every file of ``directory`` to the disk, where writing errors would show at last."""
    for path in (*directory.iterdir(), directory):
        _flush_entry(path)


def open_to_others(directory: Path) -> None:
    """Give every file the permissions that a new file gets; some writers let only the owner in."""
    for path in directory.iterdir():
        path.chmod(0o666 & ~umask())


def umask() -> int:
    """Return the process's mask of permissions."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Keep SIGINT and SIGTERM back until the block is done; for moments that must not be cut."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return
    waiting: list[tuple[int, FrameType | None]] = []
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}
    for held in _HELD:
        handler = signal.getsignal(held)
        if callable(handler):  # others end the process at once, or are ignored, or are not Python's
            before[int(held)] = handler
            signal.signal(held, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in waiting[:1]:
            before[number](number, frame)


def _prefix(path: Path) -> str:
    """Return how the names of a path's temporary neighbours begin."""
    name = os.fsencode(path.name)[:LONGEST_NAME]
    return f".{name.decode(sys.getfilesystemencoding(), 'ignore')}."


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Lock a directory for this process until the block is done, or yield False if another has.

    The system frees the lock of a process that is killed. Where there are no locks, nothing is
    taken to be free.
    """
    if sys.platform == "win32":
        yield False
        return
    handle = None
    try:
        try:
            handle = os.open(directory, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free
    finally:
        if handle is not None:
            os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places in one step; return whether the system could."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    done: int = renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0


def _step_aside(temporary: Path, path: Path) -> None:
    """Replace a directory in two steps; the old one returns if the second fails."""
    aside = temporary.parent / f"{temporary.name}.old"
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
