"""Disks without room."""

from contextlib import contextmanager

import pytest


@contextmanager
def full_disk(most=512):
    """Have no file grow beyond so many bytes."""
    resource = pytest.importorskip("resource")
    known = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, known[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, known)
