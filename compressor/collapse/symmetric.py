"""Sums of symmetric products, of which little more than half is computed (pure)."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 8192
"""Rows whose product is summed in the rows' own precision before it is added in float64."""

PANEL = 128
"""Columns that are multiplied at once; only panels on and above the diagonal."""


class SymmetricSum:
    """A float64 matrix [k, k] to which symmetric products are added.

    What lies below the diagonal is filled in when the matrix is asked for: adding to both halves
    each time would touch every element twice as often as it is multiplied.

    Args:
        start: The sum so far; it is added to in place.

    Attributes:
        upper: It. What is added to it elsewhere has to be symmetric.
    """

    def __init__(self, start: Tensor) -> None:
        self.upper = start
        self._whole = True

    @classmethod
    def zero(cls, side: int, device: torch.device | None = None) -> SymmetricSum:
        """Return the sum over no rows."""
        return cls(torch.zeros(side, side, dtype=torch.float64, device=device))

    @property
    def matrix(self) -> Tensor:
        """The whole sum: the same tensor, not a copy."""
        if not self._whole:
            side = len(self.upper)
            for first in range(0, side, PANEL):
                last = min(first + PANEL, side)
                self.upper[last:, first:last] = self.upper[first:last, last:].T
            self._whole = True
        return self.upper

    def add(self, left: Tensor, right: Tensor, factor: float = 1.0) -> None:
        """Add ``factor`` leftᵀ right, a product that is symmetric.

        Args:
            left: [N, k], in any precision, in which it is multiplied.
            right: [N, k].
            factor: Multiplies the product.
        """
        self._whole = False
        side = left.shape[1]
        for first in range(0, side, PANEL):
            last = min(first + PANEL, side)
            panel = (left[:, first:last].T @ right[:, first:]).to(self.upper.device)
            self.upper[first:last, first:].add_(panel, alpha=factor)

    def add_gram(self, rows: Tensor) -> None:
        """Add rowsᵀ rows of any number of rows [N, k]."""
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            self.add(block, block)
