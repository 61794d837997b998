"""From what each network gave to correlations and ratios (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from examples.does_nc1_predict_compressibility.correlations import (
    Correlation,
    Values,
    correlation,
)

Result = dict[str, Any]
"""What `__main__.study` returns, as JSON has it."""

PREDICTORS = {
    "nc1_quotient": "NC1 quotient, input",
    "nc1": "NC1, input",
    "cdnv": "CDNV, input",
    "tcv_relative": "relative TCV, input",
    "nearest_mean_mismatch": "nearest-mean mismatch, input",
    "nc1_quotient_output": "NC1 quotient, output",
    "nc1_output": "NC1, output",
    "cdnv_output": "CDNV, output",
    "tcv_relative_output": "relative TCV, output",
    "nearest_mean_mismatch_output": "nearest-mean mismatch, output",
    "depth": "depth",
    "parameters": "parameters",
    "stable_rank": "stable rank of W",
    "effective_rank": "effective rank of W",
    "stable_rank_data": "stable rank on data",
    "effective_rank_data": "effective rank on data",
    "spectral_energy_lost": "spectral energy lost",
    "data_energy_lost": "energy lost on data",
    "fisher": "Fisher",
}
"""What might predict a layer's cost, and its name in tables and figures."""

COLLAPSE = [name for name in PREDICTORS if name.startswith(("nc1", "cdnv", "tcv", "nearest"))]
GIVEN = ("depth", "effective_rank_data", "data_energy_lost", "fisher")
"""What is held fixed in partial correlations."""


def cost(result: Result, kind: str = "kl") -> Values:
    """Return what truncating each layer cost: KL in nats, or accuracy lost."""
    if kind == "kl":
        return np.array([layer["kl"] for layer in result["layers"]], float)
    return np.array([result["accuracy"] - layer["accuracy"] for layer in result["layers"]], float)


def values(result: Result, name: str, *, source: str = "predictors") -> Values:
    """Return a predictor of each layer, NaN where it is unknown.

    Args:
        result: Of one network.
        name: Of the predictor.
        source: ``predictors``, or ``shuffled`` for collapse under shuffled labels.
    """
    return np.array([layer[source].get(name) for layer in result["layers"]], float)


def against(
    result: Result,
    name: str,
    *,
    kind: str = "kl",
    source: str = "predictors",
    given: str | None = None,
) -> Correlation | None:
    """Return the correlation of a predictor with the cost, partial where something is given."""
    return correlation(
        values(result, name, source=source),
        cost(result, kind),
        None if given is None else values(result, given),
        seed=result["seed"],
    )


@dataclass(frozen=True)
class Ratio:
    """A guided recipe over the unguided one at the same budget and seeds.

    Args:
        network: Title.
        sort: What was allowed.
        budget: As written.
        beta: Strength of guidance.
        control: Whether layers had each other's NC1.
        ratios: KL over the unguided KL, one a seed.
        points: Accuracy above the unguided one in points, one a seed.
    """

    network: str
    sort: str
    budget: str
    beta: float
    control: bool
    ratios: tuple[float, ...]
    points: tuple[float, ...]


def ratios(results: Sequence[Result]) -> list[Ratio]:
    """Return every guided recipe beside its unguided counterpart."""
    found = []
    for result in results:
        unguided = {
            (one["sort"], one["budget"], one["seed"]): one
            for one in result["whole"]
            if one["beta"] == 0
        }
        groups: dict[tuple[str, str, float, bool], list[Any]] = defaultdict(list)
        for one in result["whole"]:
            if one["beta"]:
                key = one["sort"], one["budget"], one["beta"], one["control"]
                groups[key].append((one, unguided[one["sort"], one["budget"], one["seed"]]))
        found += [
            Ratio(
                result["title"],
                *key,
                ratios=tuple(one["kl"] / max(base["kl"], 1e-12) for one, base in pairs),
                points=tuple(100 * (one["accuracy"] - base["accuracy"]) for one, base in pairs),
            )
            for key, pairs in groups.items()
        ]
    return found


def summary(found: Sequence[Correlation | None]) -> tuple[float, int, int]:
    """Return the median ρ, and in how many networks the interval lies above and below zero."""
    known = [one for one in found if one is not None]
    if not known:
        return float("nan"), 0, 0
    return (
        median(one.rho for one in known),
        sum(one.low > 0 for one in known),
        sum(one.high < 0 for one in known),
    )
