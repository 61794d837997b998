"""Truncating a matrix in a metric on its inputs and a metric on its outputs (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compressor.collapse.spectra import eigh

DAMPING = 1e-6
"""Share of a metric's mean eigenvalue that is added to its diagonal, so that it can be inverted."""


class Factors(Protocol):
    """A layer's factors at every rank, and what each rank loses."""

    @property
    def energies(self) -> Tensor:
        """What each direction is worth after those before it, [k]."""
        ...

    def tail(self) -> Tensor:
        """Return what is lost at each rank 0…k, [k + 1]."""
        ...

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the two factors of the approximation of W at ``rank``."""
        ...


@dataclass(frozen=True)
class Decomposition:
    """The singular directions of F^{1/2} W Σ^{1/2}, pulled back to factors of W.

    Keeping the first r columns of ``up`` and rows of ``down`` gives the best rank-r approximation
    of W in the two metrics: it minimises tr(F (W−Ŵ) Σ (W−Ŵ)ᵀ) (Eckart–Young–Mirsky in the metric;
    GFWSVD, arXiv 2505.17974, eq. 9, with Kronecker factors F and Σ).

    Args:
        energies: Squared singular values [k], largest first: what each direction is worth.
        up: Factor [m, k]; its first r columns are the layer's second factor at rank r.
        down: Factor [k, n].

    It is made in float64; the factors may be kept in the weights' own precision (`to_keep`).
    """

    energies: Tensor
    up: Tensor
    down: Tensor

    def tail(self) -> Tensor:
        """Return what is lost at each rank 0…k, [k + 1]."""
        sums = self.energies.flip(0).cumsum(0).flip(0)
        return torch.cat([sums, sums.new_zeros(1)])

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return (up [m, r], down [r, n]) at ``rank``, in float64, both of the same norm."""
        up, down = self.up[:, :rank], self.down[:rank]
        return balanced(up.double(), down.double())

    def to_keep(self, rank: int, dtype: torch.dtype) -> Decomposition:
        """Return the same in less memory: what is left out is freed.

        Args:
            rank: The highest whose factors are kept.
            dtype: Precision to keep them in.
        """
        if rank >= self.up.shape[1] and dtype == self.up.dtype:
            return self
        up, down = self.up[:, :rank], self.down[:rank]
        return _row_major(self.energies, up.to(dtype), down.to(dtype, copy=True))


def decompose(
    weight: Tensor, input_metric: Tensor | None = None, output_metric: Tensor | None = None
) -> Decomposition:
    """Decompose W in the metrics Σ on its inputs and F on its outputs.

    Args:
        weight: W [m, n].
        input_metric: Σ [n, n], symmetric positive semi-definite; None is the identity.
        output_metric: F [m, m], symmetric positive semi-definite; None is the identity.

    Raises:
        ValueError: If an argument holds NaN or Inf, or has the wrong shape, or if an
            eigendecomposition does not converge.
    """
    rows, columns = weight.shape
    weight = _finite(weight.double(), "weight", (rows, columns))
    if input_metric is not None:
        input_metric = _finite(input_metric.double(), "input metric", (columns, columns))
    if output_metric is not None:
        output_metric = _finite(output_metric.double(), "output metric", (rows, rows))
    if rows > columns:
        right = weight if output_metric is None else output_metric @ weight
        return decompose_on_smaller_side(weight, input_metric, weight.T @ right)
    left = weight if input_metric is None else weight @ input_metric
    return decompose_on_smaller_side(weight, output_metric, left @ weight.T)


def decompose_on_smaller_side(weight: Tensor, near: Tensor | None, pulled: Tensor) -> Decomposition:
    """Decompose W given its smaller side's metric and the other one seen through W.

    Works in float64 with an eigendecomposition of R pulled Rᵀ, RᵀR = ``near``: any root gives the
    same truncation. ``near`` is damped by `DAMPING` of its mean eigenvalue.

    Args:
        weight: W [m, n].
        near: F [m, m] where m ≤ n, else Σ [n, n]; None is the identity.
        pulled: W Σ Wᵀ [m, m] where m ≤ n, else Wᵀ F W [n, n].

    Raises:
        ValueError: If an argument holds NaN or Inf, or has the wrong shape, or if an
            eigendecomposition does not converge.
    """
    rows, columns = weight.shape
    side = min(rows, columns)
    weight = _finite(weight.double(), "weight", (rows, columns))
    pulled = _finite(pulled.double(), "metric", (side, side))
    if rows > columns:
        flipped = decompose_on_smaller_side(weight.T, near, pulled)
        return _row_major(flipped.energies, flipped.down.T, flipped.up.T)
    if near is None:
        energies, vectors = _descending_eigh(pulled)
        return _row_major(energies, vectors, vectors.T @ weight)
    root = _root(_finite(near.double(), "metric", (side, side)))
    energies, vectors = _descending_eigh(root @ pulled @ root.T)
    up = torch.linalg.solve_triangular(root, vectors, upper=True)
    return _row_major(energies, up, (vectors.T @ root) @ weight)


def _root(metric: Tensor) -> Tensor:
    """Return an upper triangular R [k, k] with Rᵀ R = the metric, damped; I where it is zero.

    A Cholesky factor costs a tenth of the eigendecomposition that a symmetric root takes.
    """
    mean = float(metric.diagonal().mean())
    damped = (metric + metric.T) / 2
    if mean <= 0:
        return torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    damped.diagonal().add_(DAMPING * mean)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped, upper=True)
    if not int(failed):
        return factor
    # An indefinite metric: its negative eigenvalues are taken for zero.
    values, vectors = _descending_eigh(metric)
    clipped = (vectors * (values + DAMPING * mean).sqrt()).T
    factor = torch.linalg.qr(clipped, mode="r").R
    return factor


def _row_major(energies: Tensor, up: Tensor, down: Tensor) -> Decomposition:
    """Return a decomposition as it would be read from a file.

    Products round alike only if their factors lie in memory alike.
    """
    return Decomposition(energies.contiguous(), up.contiguous(), down.contiguous())


def balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Scale the factors so that column j of ``up`` and row j of ``down`` have the same norm.

    The product is unchanged. Factors of one size survive rounding to half precision best.
    """
    up_norm, down_norm = up.norm(dim=0), down.norm(dim=1)
    usable = (up_norm > 0) & (down_norm > 0)
    scale = torch.where(usable, (down_norm / up_norm.where(usable, 1)).sqrt(), 1.0)
    scale = scale.where(scale > 0, 1.0)
    return up * scale, down / scale[:, None]


def weighted_error(
    difference: Tensor, input_metric: Tensor | None, output_metric: Tensor | None
) -> float:
    """Return tr(F D Σ Dᵀ) of a difference D [m, n] of two weight matrices."""
    right = difference if input_metric is None else difference @ input_metric
    left = difference if output_metric is None else output_metric @ difference
    return float((left * right).sum())


def _descending_eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, largest first and clipped at zero, and eigenvectors in columns."""
    values, vectors = eigh(gram)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _finite(tensor: Tensor, what: str, shape: tuple[int, int]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"the {what} has shape {tuple(tensor.shape)}, expected {shape}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"the {what} holds NaN or Inf")
    return tensor
