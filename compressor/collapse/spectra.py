"""Ranks of a matrix that its singular values tell (pure)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def singular_values(matrix: Tensor, input_metric: Tensor | None = None) -> Tensor:
    """Return the singular values [min(m, n)] of W, or of W Σ^{1/2}, largest first.

    From an eigendecomposition of the smaller side's Gram matrix in float64.

    Args:
        matrix: W [m, n].
        input_metric: Σ [n, n], symmetric positive semi-definite; None is the identity.

    Values below about 1e-8 of the largest drown in the Gram matrix's rounding.

    Raises:
        ValueError: If either matrix holds NaN or Inf.
    """
    for given in (matrix, input_metric):
        if given is not None and not bool(torch.isfinite(given).all()):
            raise ValueError("the matrix holds NaN or Inf, and has no singular values")
    matrix = matrix.double()
    wide = matrix.shape[0] <= matrix.shape[1]
    if input_metric is None:
        gram = matrix @ matrix.T if wide else matrix.T @ matrix
    elif wide:
        gram = matrix @ input_metric.double() @ matrix.T
    else:
        values, vectors = eigh(input_metric.double())
        root = matrix @ (vectors * values.clamp_min(0).sqrt())
        gram = root.T @ root
    return eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return ascending eigenvalues [k] and eigenvectors [k, k] of a symmetric matrix [k, k].

    What is not symmetric about it is taken for rounding, and evened out. Where the device's solver
    fails, for lack of memory or of convergence, the CPU's is asked.

    Raises:
        ValueError: If the CPU's solver does not converge either.
    """
    values, vectors = _solved(torch.linalg.eigh, (matrix + matrix.T) / 2)
    return values.to(matrix.device), vectors.to(matrix.device)


def eigvalsh(matrix: Tensor) -> Tensor:
    """Return the ascending eigenvalues [k] alone, otherwise as `eigh`."""
    values: Tensor = _solved(torch.linalg.eigvalsh, (matrix + matrix.T) / 2)
    return values.to(matrix.device)


def _solved(solve: Callable[[Tensor], T], matrix: Tensor) -> T:
    try:
        return solve(matrix)
    except RuntimeError as error:  # torch's LinAlgError and OutOfMemoryError are among them
        if matrix.device.type == "cpu":
            raise ValueError(f"its eigendecomposition fails: {error}") from error
    return solve(matrix.cpu())


def stable_rank(values: Tensor) -> float:
    """Return ‖W‖_F²/‖W‖₂² of singular values [k] (Rudelson & Vershynin 2007); 0 for W = 0."""
    largest = float(values.max())
    return float(values.square().sum()) / largest**2 if largest > 0 else 0.0


def effective_rank(values: Tensor) -> float:
    """Return exp H(σ/Σσ) of singular values [k] (Roy & Vetterli 2007); 0 for the zero matrix."""
    total = float(values.sum())
    if total <= 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def numerical_rank(values: Tensor, tolerance: float = 1e-3) -> int:
    """Return how many singular values [k] exceed ``tolerance`` times the largest."""
    largest = float(values.max())
    return int((values > tolerance * largest).sum()) if largest > 0 else 0
