"""What a job's process tells of the errors that nobody expected."""

from __future__ import annotations

import errno

import pytest

from compressor.batch.worker import told


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            "no space left on device: out/x. Make room, or name a path elsewhere.",
        ),
        (ValueError("two\nlines"), "unexpected ValueError: two lines"),
        (KeyError(), "unexpected KeyError: no message"),
    ],
)
def test_an_unexpected_error_is_told_on_one_line(error, message):
    assert told(error) == message
