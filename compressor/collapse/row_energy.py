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

    def real(self, name: str) -> list[Tensor]:
        """Return the energies [B, P] of a layer's rows by call, zero at padding."""
        mask = self.mask
        return [
            rows * (mask != 0).to(rows.device)
            if mask is not None and mask.shape == rows.shape
            else rows
            for rows in self.energies[name]
        ]

    def of(self, index: Tensor | None) -> BatchEnergies:
        """Return those of the samples of this index alone; None: of all."""
        if index is None:
            return self
        return BatchEnergies(
            samples=len(index),
            mask=None if self.mask is None else self.mask[index.to(self.mask.device)],
            energies={
                name: [rows[index.to(rows.device)] for rows in calls]
                for name, calls in self.energies.items()
            },
        )


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
