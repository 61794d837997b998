"""The models and data that methods are compared on, and the registry of them.

A workload is one file that registers itself. Whatever it cannot bring along (a checkpoint, a data
set) it names as a place; a person gives each place's path by ``--path NAME=PATH`` or in the
environment variable that `variable` tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import UsageError, did_you_mean
from compressor.registry import Registry
from compressor.settings import DataSettings, ModelSettings

PREFIX = "COMPRESSOR_BENCHMARK_"

Settings = tuple[ModelSettings, DataSettings]


@dataclass(frozen=True)
class Workload:
    """One model with data that fits it.

    Args:
        name: Name it is registered under.
        title: What it is called in tables and plots.
        budgets: Budgets it is compressed to by default.
        settings: From the path of each place to the model and its data.
        places: What each path that it needs leads to, by the place's name.
    """

    name: str
    title: str
    budgets: tuple[str, ...]
    settings: Callable[[Mapping[str, Path]], Settings]
    places: Mapping[str, str]

    def missing(self, paths: Mapping[str, Path]) -> str | None:
        """Return why the workload cannot run, or None if every place exists."""
        for place, meaning in self.places.items():
            if place not in paths:
                return f"no path to {meaning}; pass --path {place}=PATH or set {variable(place)}"
            if not paths[place].exists():
                return f"{paths[place]} does not exist; expected {meaning}"
        return None


WORKLOADS: Registry[Workload] = Registry(
    "workload",
    group="benchmark_workloads",
    modules=(
        "benchmarks.workloads.minilm",
        "benchmarks.workloads.efficientnet",
        "benchmarks.workloads.digits",
        "benchmarks.workloads.resnet",
        "benchmarks.workloads.smollm2",
    ),
)


def variable(place: str) -> str:
    """Return the environment variable that holds a place's path."""
    return PREFIX + place.upper().replace("-", "_")


def places() -> dict[str, str]:
    """Return what every place of every workload leads to, by name."""
    return {
        place: meaning
        for _, workload in WORKLOADS.items()
        for place, meaning in workload.places.items()
    }


def find_paths(given: list[str], environment: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """Return the path of each place that is known.

    Args:
        given: ``NAME=PATH`` as typed; these go before the environment.
        environment: Environment variables.

    Raises:
        UsageError: If one is not of that form, or names no place.
    """
    known = places()
    paths = {
        place: Path(environment[variable(place)])
        for place in known
        if environment.get(variable(place))
    }
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or not path:
            raise UsageError(f"Cannot read --path {text!r}. Expected NAME=PATH.")
        if name not in known:
            raise UsageError(f"--path {text!r} names no place.{did_you_mean(name, known)}")
        paths[name] = Path(path)
    return paths
