"""Tracing a model, or running what was traced, quietly; telling when a format cannot hold it."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator

import torch

from compressor.errors import ModelError
from compressor.models import LoadedModel

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def tracing(format_: str, model: LoadedModel) -> Iterator[None]:
    """Trace without gradients and without the tracer's own warnings, which no user can act on.

    Raises:
        ModelError: For whatever the tracer raises, with its innermost cause in one line.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # tracers raise errors of a dozen kinds
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in _COLOURS.sub("", str(cause)).splitlines() if line.strip()]
        first = lines[0] if lines else type(cause).__name__
        raise ModelError(
            f"{format_} cannot hold {model.reference}: {first[:300]} Use --to dense or --to "
            "safetensors, which need no tracing."
        ) from error
