"""What is wrong with a path, in words: without the system's error numbers, with what to do next."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from compressor.errors import CompressorError

_DENIED = (errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHER_PLACE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
    errno.ENAMETOOLONG,
)


def state(path: str | os.PathLike[str]) -> str:
    """Return the predicate of a sentence about a path: what stands there, or why nothing does."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            return f"is a link to {os.readlink(path)}, which does not exist"
        return "does not exist"
    except NotADirectoryError:
        return "lies below a file"
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        return f"cannot be looked at: {reason(error)}"
    if stat.S_ISDIR(mode):
        return "is a directory"
    return "is a file" if stat.S_ISREG(mode) else "is neither a file nor a directory"


def reason(error: BaseException) -> str:
    """Return why an operation failed, of a system error without its number and its path."""
    words = getattr(error, "strerror", None)
    if isinstance(error, OSError) and isinstance(words, str) and words:
        return words[0].lower() + words[1:]
    return str(error) or type(error).__name__


def worded(error: BaseException) -> str:
    """Return the text of an error, of a system error with its path, but without its number."""
    name = error.filename if isinstance(error, OSError) else None
    return f"{reason(error)}: {_shown(name)}" if name else reason(error)


def refusal(error: BaseException) -> str:
    """Return why the system refused, and what to do: two sentences, to stand behind the path."""
    return f"{reason(error).rstrip('.')}. {advice(error)}"


def advice(error: BaseException) -> str:
    """Return what to do about a path that the system refused."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _DENIED:
        return (
            "Give this user the right to it and to the directories above it, or name another path."
        )
    if number in _FULL:
        return "Make room, or name a path elsewhere."
    if number in _OTHER_PLACE:
        return "Check the path."
    if number is None:
        return "COMPRESSOR_DEBUG=1 shows where it comes from."
    return "Check it, and the disk that it lies on."


def require_readable(path: Path, fault: type[CompressorError]) -> None:
    """Refuse a file that the system does not let this process read.

    Raises:
        CompressorError: ``fault``, with the system's reason and what to do.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise fault(f"Cannot read {path}: {refusal(error)}") from error


def _shown(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name)
