"""Working through many rows in parts whose temporaries are small (pure).

A temporary as large as a batch's activations is memory that the system hands out anew each time,
which on a CPU takes several times as long as computing it; small ones are used again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SPAN = 1 << 18
"""Elements of a part on a CPU; elsewhere, where starting work is what costs, there is one part."""


def spans(rows: Tensor) -> Iterator[slice]:
    """Yield parts [start, stop) of the rows [N, k] in order."""
    count, width = rows.shape
    step = max(SPAN // max(width, 1), 1) if rows.device.type == "cpu" else max(count, 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def column_energies(rows: Tensor) -> Tensor:
    """Return Σ_t z_t² of each column of rows [N, k]."""
    total = rows.new_zeros(rows.shape[1])
    for part in spans(rows):
        total += rows[part].square().sum(0)
    return total


def column_sizes(rows: Tensor) -> Tensor:
    """Return Σ_t |z_t| of each column of rows [N, k]."""
    total = rows.new_zeros(rows.shape[1])
    for part in spans(rows):
        total += rows[part].abs().sum(0)
    return total


def squared_lengths(rows: Tensor) -> Tensor:
    """Return ‖z_t‖² of rows [..., k]; no temporary of their size is made."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return lengths.square()
