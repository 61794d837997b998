"""Truncating a matrix in a metric on its inputs and a metric on its outputs (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 1e-6
"""Share of a metric's mean eigenvalue that is added to its diagonal, so that it can be inverted."""


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
    """

    energies: Tensor
    up: Tensor
    down: Tensor

    def tail(self) -> Tensor:
        """Return what is lost at each rank 0…k, [k + 1]."""
        sums = self.energies.flip(0).cumsum(0).flip(0)
        return torch.cat([sums, sums.new_zeros(1)])

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return (up [m, r], down [r, n]) at ``rank``, scaled so that both share the norm."""
        up, down = self.up[:, :rank], self.down[:rank]
        return balanced(up, down)


def decompose(
    weight: Tensor, input_metric: Tensor | None = None, output_metric: Tensor | None = None
) -> Decomposition:
    """Decompose W in the metrics Σ on its inputs and F on its outputs.

    Works in float64 with an eigendecomposition of the smaller side: F^{1/2} W Σ Wᵀ F^{1/2} [m, m]
    where m ≤ n, else Σ^{1/2} Wᵀ F W Σ^{1/2} [n, n]. Only the metric of the smaller side has to be
    invertible; it is damped by `DAMPING` of its mean eigenvalue.

    Args:
        weight: W [m, n].
        input_metric: Σ [n, n], symmetric positive semi-definite; None is the identity.
        output_metric: F [m, m], symmetric positive semi-definite; None is the identity.

    Raises:
        ValueError: If an argument holds NaN or Inf, or has the wrong shape.
        torch.linalg.LinAlgError: If an eigendecomposition does not converge.
    """
    rows, columns = weight.shape
    weight = _finite(weight.double(), "weight", (rows, columns))
    if input_metric is not None:
        input_metric = _finite(input_metric.double(), "input metric", (columns, columns))
    if output_metric is not None:
        output_metric = _finite(output_metric.double(), "output metric", (rows, rows))
    if rows > columns:
        flipped = decompose(weight.T, output_metric, input_metric)
        return Decomposition(flipped.energies, flipped.down.T, flipped.up.T)
    gram = weight @ weight.T if input_metric is None else weight @ input_metric @ weight.T
    if output_metric is None:
        energies, vectors = _descending_eigh(gram)
        return Decomposition(energies, vectors, vectors.T @ weight)
    # With F = L Lᵀ the factor Lᵀ serves as F^{1/2}: any square root gives the same truncation.
    root = torch.linalg.cholesky(damped(output_metric))
    energies, vectors = _descending_eigh(root.T @ gram @ root)
    up = torch.linalg.solve_triangular(root.T, vectors, upper=True)
    return Decomposition(energies, up, vectors.T @ (root.T @ weight))


def damped(metric: Tensor, share: float = DAMPING) -> Tensor:
    """Return the metric plus ``share`` of its mean eigenvalue on the diagonal.

    A metric that is zero throughout becomes the identity: nothing is known about the directions.
    """
    size = metric.shape[0]
    mean = float(metric.diagonal().mean())
    identity = torch.eye(size, dtype=metric.dtype, device=metric.device)
    return identity if mean <= 0 else metric + share * mean * identity


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
    gram = (gram + gram.T) / 2
    try:
        values, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError:
        if gram.device.type == "cpu":
            raise
        values, vectors = (part.to(gram.device) for part in torch.linalg.eigh(gram.cpu()))
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _finite(tensor: Tensor, what: str, shape: tuple[int, int]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"the {what} has shape {tuple(tensor.shape)}, expected {shape}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"the {what} holds NaN or Inf")
    return tensor
