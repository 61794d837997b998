"""What is told of a path: what stands there, why the system refused, and what to do."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from compressor.errors import DataError
from compressor.paths import advice, reason, refusal, require_readable, state, worded


def denied(name: object = "a/b") -> OSError:
    return OSError(errno.EACCES, os.strerror(errno.EACCES), name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file", "is a file"),
        (".", "is a directory"),
        ("none", "does not exist"),
        ("broken", "is a link to gone, which does not exist"),
        ("file/below", "lies below a file"),
        ("loop", "cannot be looked at: too many levels of symbolic links"),
        ("n" * 300, "cannot be looked at: file name too long"),
        ("null\0byte", "cannot be looked at: embedded null byte"),
        ("socket", "is neither a file nor a directory"),
    ],
)
def test_what_stands_at_a_path(name, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("broken").symlink_to("gone")
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("socket")
        assert state(name) == told
        assert state(Path(name)) == told


def test_a_system_error_is_told_without_its_number():
    assert reason(denied()) == "permission denied"
    assert worded(denied()) == "permission denied: a/b"
    assert worded(denied(b"a/b")) == "permission denied: a/b"
    assert worded(denied(None)) == "permission denied"
    assert worded(OSError("the hub is gone")) == "the hub is gone"
    assert worded(ValueError("odd")) == "odd"
    assert worded(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.EACCES, "right to it"),
        (errno.ENOSPC, "Make room"),
        (errno.ENOENT, "Check the path"),
        (errno.EIO, "the disk"),
        (None, "COMPRESSOR_DEBUG=1"),
    ],
)
def test_every_refusal_ends_in_what_to_do(number, step):
    error = OSError("odd.") if number is None else OSError(number, os.strerror(number), "x")
    assert step in advice(error)
    assert refusal(error) == f"{reason(error).rstrip('.')}. {advice(error)}"


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    require_readable(tmp_path / "file", DataError)
    with pytest.raises(DataError, match=r"Cannot read .*: is a directory\. Check the path"):
        require_readable(tmp_path, DataError)
