"""One batch's gradients in a layer's weights, and what the Fisher sums of them (pure).

That of sample b is G_b = Σ_t δ_t z_tᵀ = D_bᵀ Z_b [m, n], D_b [P, m] and Z_b [P, n] being its rows.
Of few positions the P×P matrices Z Zᵀ and D Dᵀ are the smaller thing, of many the G_b themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Pair: TypeAlias = tuple[Tensor, Tensor]
"""L and R [N, k] whose product LᵀR [k, k] is symmetric, and not made yet."""


@dataclass(frozen=True)
class Terms:
    """Rows of a batch.

    Args:
        inputs: Z, [B, P, n].
        gradients: D, [B, P, m].
        slopes: ‖δ‖ of each row, [B, P].
        seen: The larger side's rows as W [m, n] shows them, where the caller has them: Z Wᵀ
            [B, P, m] where m ≤ n, else D W [B, P, n].
    """

    inputs: Tensor
    gradients: Tensor
    slopes: Tensor
    seen: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor, gradients: Tensor, seen: Tensor | None = None) -> Terms:
        """Return the rows, without positions that add nothing to any product.

        Those are most where few rows have a gradient: in the last block of a classifier only the
        token that its head reads.
        """
        slopes = torch.linalg.vector_norm(gradients, dim=2)
        there = slopes != 0  # NaN is not zero
        most = int(there.sum(1).max()) if len(there) else 0
        if not 0 < most <= slopes.shape[1] // 2:
            return cls(inputs, gradients, slopes, seen)
        # A stable sort: rows keep their order, and samples with fewer keep some that are zero.
        first = (~there).to(torch.int8).argsort(dim=1, stable=True)[:, :most]

        def picked(rows: Tensor) -> Tensor:
            return rows.gather(1, first[..., None].expand(-1, -1, rows.shape[2]))

        return cls(
            picked(inputs),
            picked(gradients),
            slopes.gather(1, first),
            None if seen is None else picked(seen),
        )

    @property
    def positions(self) -> int:
        """Number of rows of each sample, P."""
        return self.inputs.shape[1]

    def pulled(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the larger side's rows as the weights W [m, n] show them: δ W if tall, else W z.

        Args:
            weight: W.
            rows: Which of the B·P rows; None: all.

        Returns:
            [N, min(m, n)].
        """
        if self.seen is not None:
            return flat(self.seen, rows)
        tall = len(weight) > weight.shape[1]
        return flat(self.gradients if tall else self.inputs, rows) @ (weight if tall else weight.T)


def through_positions(terms: Terms, weight: Tensor, pulled: Tensor) -> tuple[Pair, Pair, Tensor]:
    """Few positions: G Gᵀ = Dᵀ (Z Zᵀ) D through the P×P matrices of each sample.

    Args:
        terms: The batch.
        weight: W [m, n].
        pulled: Its rows seen through W, [B·P, k].

    Returns:
        What the sum on the smaller side gains, what the other one seen through the weights does,
        and Σ ‖G‖².
    """
    inner, outer = _products(terms.inputs), _products(terms.gradients)
    energy = (inner * outer).sum()
    rows = pulled.reshape(*inner.shape[:2], -1)
    if len(weight) > weight.shape[1]:
        return sandwich(terms.inputs, outer), sandwich(rows, inner), energy
    return sandwich(terms.gradients, inner), sandwich(rows, outer), energy


def through_weights(terms: Terms, weight: Tensor) -> tuple[Pair, Pair, Tensor]:
    """Many positions: the gradient G [B, m, n] of each sample is the smaller thing.

    Returns:
        As `through_positions`.
    """
    gradient = terms.gradients.transpose(1, 2) @ terms.inputs
    energy = gradient.square().sum()
    if len(weight) > weight.shape[1]:
        near = gradient.flatten(0, 1)  # Σ_b G_bᵀ G_b takes every row of every G
        pulled = (weight.T @ gradient).transpose(1, 2).flatten(0, 1)
    else:
        near = gradient.transpose(1, 2).flatten(0, 1)
        pulled = (gradient @ weight.T).flatten(0, 1)
    return (near, near), (pulled, pulled), energy


def larger_pair(terms: Terms, *, tall: bool) -> Pair:
    """Return Σ_b G_bᵀ G_b where m ≤ n, else Σ_b G_b G_bᵀ: what the larger side's sum gains."""
    near, far = (terms.inputs, terms.gradients) if tall else (terms.gradients, terms.inputs)
    if near.shape[1] > near.shape[2]:
        gradient = (near.transpose(1, 2) @ far).flatten(0, 1)  # (B·k, larger side)
        return gradient, gradient
    return sandwich(far, _products(near))


def sandwich(rows: Tensor, middle: Tensor) -> Pair:
    """Return R and M R [B·P, k], whose product is Σ_b R_bᵀ M_b R_b.

    Args:
        rows: R [B, P, k].
        middle: M [B, P, P], symmetric.
    """
    mixed = middle * rows if rows.shape[1] == 1 else middle @ rows
    return rows.flatten(0, 1), mixed.flatten(0, 1)


def flat(rows: Tensor, index: Tensor | None) -> Tensor:
    """Return [B, P, k] as [N, k]: the rows of this index, None: all of them."""
    joined = rows.flatten(0, 1)
    return joined if index is None else joined.index_select(0, index)


def _products(rows: Tensor) -> Tensor:
    """Return R_b R_bᵀ [B, P, P] of rows [B, P, k]."""
    if rows.shape[1] == 1:  # products of single rows are squared norms, and faster so
        return rows.square().sum(2, keepdim=True)
    return rows @ rows.transpose(1, 2)
