"""The calibration loss's own gradient in one layer's weights, under the given labels (pure).

With G_i = Σ_t δ_t z_tᵀ [m, n] the gradient of sample i's cross entropy −log p(y_i|x_i) in the
weights W, y_i the given label, two means are taken:

    E[G] [m, n]               the gradient itself, which first-order criteria need (ZS-SVD);
    E[Σ_j G_ij²] [m]          the diagonal of the empirical Fisher summed by row (FWSVD).

Unlike `compressor.collapse.fisher`, labels are the data's and not the model's, and rows are not
centred: both as in the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossGradient:
    """First and second moments of a layer's weight gradient.

    Args:
        mean: E[G] [m, n].
        rows: E[Σ_j G_ij²] of each output i, [m].
    """

    mean: Tensor
    rows: Tensor


class LossMoments:
    """Accumulates `LossGradient` over batches of samples, in float64 between batches.

    Args:
        weight: W [m, n] in the activations' precision.
        home: Device that the sums are kept on.
    """

    def __init__(self, weight: Tensor, *, home: torch.device) -> None:
        rows, columns = weight.shape
        self.centre = weight.new_zeros(columns)
        self._home = home
        self._mean = torch.zeros(rows, columns, dtype=torch.float64, device=home)
        self._rows = torch.zeros(rows, dtype=torch.float64, device=home)
        self._samples = 0

    def update(self, inputs: Tensor, gradients: Tensor, *, scale: float = 1.0) -> None:
        """Add a batch.

        Args:
            inputs: Input rows [B, P, n]; rows to leave out are zero.
            gradients: Gradients δ/scale [B, P, m] of each sample's own loss at the outputs.
            scale: What the gradients were divided by.

        Raises:
            ValueError: If a gradient is not finite.
        """
        samples, positions, columns = inputs.shape
        if positions <= columns:
            # (Gᵢ Gᵢᵀ)'s diagonal through the P×P products of each sample's input rows.
            mixed = inputs @ inputs.transpose(1, 2) @ gradients  # (B, P, m)
            squares = (gradients * mixed).sum((0, 1))
            mean = gradients.flatten(0, 1).T @ inputs.flatten(0, 1)
        else:
            gradient = gradients.transpose(1, 2) @ inputs  # (B, m, n)
            squares, mean = gradient.square().sum((0, 2)), gradient.sum(0)
        if not bool(torch.isfinite(squares).all() and torch.isfinite(mean).all()):
            raise ValueError("the loss's gradient in its weights holds NaN or Inf")
        self._mean.add_(mean.to(self._home).double(), alpha=scale)
        self._rows.add_(squares.to(self._home).double().clamp_min(0), alpha=scale * scale)
        self._samples += samples

    def join_(self, sum_: Callable[[Tensor], None]) -> None:
        """Become the sums of all processes together; each of them has to call it.

        Args:
            sum_: Replaces a tensor by its sum over the processes.
        """
        samples = self._rows.new_tensor([self._samples])
        for tensor in (self._mean, self._rows, samples):
            sum_(tensor)
        self._samples = int(samples)

    def result(self) -> LossGradient:
        """Return the means over all samples."""
        samples = max(self._samples, 1)
        return LossGradient(mean=self._mean / samples, rows=self._rows / samples)
