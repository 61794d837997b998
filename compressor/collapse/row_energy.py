"""How much the predictions depend on each row of a layer's output: the gradient's size there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

RowEnergies: TypeAlias = dict[str, list[Tensor]]
"""‖δ‖² [B, P] at the output rows of each layer, one tensor for each of its calls in order."""


@dataclass(frozen=True)
class BatchEnergies:
    """How much the predictions depend on each row of one batch.

    Args:
        samples: Number of samples B.
        mask: Which tokens are real, [B, T]; None where all are.
        energies: ‖δ‖² at the output rows, by layer and call.
    """

    samples: int
    mask: Tensor | None
    energies: RowEnergies


def named(energies: RowEnergies) -> dict[str, Tensor]:
    """Return the energies as tensors by ``call/layer``, for a cache or for another process."""
    return {
        f"{number}/{name}": tensor
        for name, calls in energies.items()
        for number, tensor in enumerate(calls)
    }


def from_named(tensors: Mapping[str, Tensor]) -> RowEnergies:
    """Return the energies that `named` was called on."""
    found: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        found.setdefault(name, {})[int(number)] = tensor
    return {name: [calls[number] for number in sorted(calls)] for name, calls in found.items()}
