"""Every error a user can meet, each with the exit code the command line ends with.

CompressorError                 1  something failed
├── UsageError                  2  the call itself is wrong
│   ├── UnknownNameError        2  a name that nothing is registered under
│   └── OutputExistsError       2  the output directory exists and overwriting was not asked for
├── ModelError                  1  a model or checkpoint cannot be read
│   └── NoSuchModelError        2  nothing lies at the path that was named as one
├── DataError                   1  data cannot be read, or does not fit the model
│   └── NoSuchDataError         2  nothing lies at the path that was named as data
├── LayerError                  1  a layer cannot be measured or factorized
├── CheckpointError             1  a saved directory is damaged, foreign or too new
│   └── NoSuchCheckpointError   2  nothing lies at the path that was named as a saved directory
├── MissingExtraError           1  an optional package is not installed
└── BudgetError                 3  a budget or quality target cannot be met
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompressorError(Exception):
    """Base of all errors this package raises on purpose.

    The message says what was wrong (file, layer or key), what was expected, and what to do next.
    """

    exit_code = 1


class UsageError(CompressorError):
    """An argument or option has a value that can never work."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nothing is registered under."""

    def __init__(self, noun: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        super().__init__(f"Unknown {noun} {name!r}.{did_you_mean(name, known)}")


class OutputExistsError(UsageError):
    """The output directory exists and overwriting was not asked for."""


class ModelError(CompressorError):
    """A model or checkpoint cannot be read."""


class NoSuchModelError(ModelError):
    """Nothing lies at the path that was named as a model or its weights."""

    exit_code = 2


class DataError(CompressorError):
    """Data cannot be read, or its labels do not fit the model."""


class NoSuchDataError(DataError):
    """Nothing lies at the path that was named as data."""

    exit_code = 2


class LayerError(CompressorError):
    """A layer cannot be measured or factorized."""

    def __init__(self, layer: str, problem: str) -> None:
        super().__init__(f"Layer {layer}: {problem}")
        self.layer = layer


class CheckpointError(CompressorError):
    """A saved directory is damaged, not ours, or written by a newer version."""


class NoSuchCheckpointError(CheckpointError):
    """Nothing lies at the path that was named as a saved directory."""

    exit_code = 2


class MissingExtraError(CompressorError):
    """A feature needs a package that is not installed."""

    def __init__(self, feature: str, package: str) -> None:
        super().__init__(f"{feature} needs the package {package}: pip install {package}")


class BudgetError(CompressorError):
    """A budget or quality target cannot be met."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str], limit: int = 20) -> str:
    """Return a sentence that names the nearest known name and lists the known ones.

    Args:
        name: What the user wrote.
        known: The names that would have worked.
        limit: How many of them to list at most.
    """
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    shown = ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
    return f"{hint} Available: {shown}." if names else hint
