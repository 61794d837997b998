"""The weighted ridge regression of one low-rank layer on the inputs that it gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compressor.collapse.moments import add_symmetric_
from compressor.errors import LayerError
from compressor.layers.candidates import Candidate
from compressor.layers.kinds import LAYER_KINDS


class LayerFit:
    """The regression of one layer's factors and bias, summed over batches.

    Args:
        name: Name of the layer, for messages.
        layer: The candidate.
        dense: The dense layer.
        compressed: The factorized one; it is given parameters of its own.
        ridge: λ over the mean diagonal of the centred moments.
        metric: F [m, m], positive definite; None is the identity.
        both: Fit the first factor too, which takes the moments of the inputs themselves.
    """

    def __init__(
        self,
        name: str,
        layer: Candidate,
        dense: nn.Module,
        compressed: nn.Module,
        *,
        ridge: float,
        metric: Tensor | None = None,
        both: bool = True,
    ) -> None:
        self._name, self._dense, self._compressed = name, dense, compressed
        self._kind, self._ridge, self._metric = LAYER_KINDS.get(layer.kind), ridge, metric
        self._has_bias = getattr(compressed, "bias", None) is not None
        for module in compressed.modules():
            for part, value in list(module.named_parameters(recurse=False)):
                own = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
                setattr(module, part, own)
        up, down = self._kind.factors(compressed)
        # MPS has no float64; moments are summed and solved on the CPU then.
        self._home = torch.device("cpu") if up.device.type == "mps" else up.device
        self._start = self._sum(up).clone(), self._sum(down).clone()
        up, self._both = self._start[0], both
        rows, columns = up.shape[0], layer.shape[1] if both else up.shape[1]
        self._total = self._unit = 0.0
        self._new = False  # whether anything came since it was solved
        self._origin: tuple[Tensor, Tensor] | None = None  # sums are about these means
        self._sums = (up.new_zeros(columns), up.new_zeros(rows))
        self._gram = up.new_zeros(columns, columns)
        self._cross = up.new_zeros(rows, columns)

    def add(
        self, inputs: Tensor, expected: Tensor, samples: int, energies: Tensor, mask: Tensor | None
    ) -> None:
        """Take in one batch.

        Args:
            inputs: What the compressed layer gets, in the layer's own form.
            expected: What the dense layer gives on the dense model's inputs.
            samples: Number of samples B.
            energies: Weight of each output row, [B, P].
            mask: Which tokens are real, [B, T].
        """
        low: Any = self._compressed
        rows = (
            self._kind.rows(self._dense, inputs, samples)
            if self._both
            else self._kind.output_rows(self._dense, low.down(inputs), samples)
        )
        wanted = self._kind.output_rows(self._dense, expected, samples)
        if rows is None:
            raise LayerError(self._name, "its input rows do not belong to samples")
        if mask is not None and mask.shape == energies.shape:
            energies = energies * (mask != 0).to(energies.device)
        weights = energies.flatten()
        total = float(weights.sum())
        if not total > 0:
            return  # the predictions depend on nothing of it
        self._unit = self._unit or total  # weights near 1, whatever the gradients' size
        self._add(rows.flatten(0, 1), wanted.flatten(0, 1), weights / self._unit)
        self._new = True

    def solve(self) -> None:
        """Give the compressed layer the factors and the bias that fit all batches so far."""
        if not self._new:
            return
        if not (torch.isfinite(self._gram).all() and torch.isfinite(self._cross).all()):
            raise LayerError(self._name, "it cannot be refitted: its outputs hold NaN or Inf")
        self._kind.fill(self._compressed, *self.solution())
        self._new = False

    def _add(self, rows: Tensor, wanted: Tensor, weights: Tensor) -> None:
        """Add rows [N, n], wanted outputs [N, m] and their weights [N]."""
        total = float(weights.sum())
        weights = weights.to(rows)
        if self._origin is None:
            share = weights / total if self._has_bias else torch.zeros_like(weights)
            self._origin = (share @ rows, share @ wanted)
        rows, wanted = rows - self._origin[0], wanted - self._origin[1]
        weighted = rows * weights[:, None]
        self._total += total
        self._sums = (
            self._sums[0] + self._sum(weighted.sum(0)),
            self._sums[1] + self._sum(weights @ wanted),
        )
        add_symmetric_(self._gram, weighted, rows)
        self._cross += self._sum(wanted.T @ weighted)

    def solution(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the factors up [m, r] and down [r, n], and the bias [m], of all batches so far."""
        assert self._origin is not None
        mean, wanted = (part / self._total for part in self._sums)
        gram, cross = self._gram / self._total, self._cross / self._total
        if self._has_bias:
            gram = gram - torch.outer(mean, mean)
            cross = cross - torch.outer(wanted, mean)
        up, down = self._start
        if not self._both:  # what is summed are V z' already
            up = up + self._ridged(gram, cross - up @ gram)
            return up, down, self._bias(up, mean, wanted)
        hidden = down @ gram @ down.T
        up = up + self._ridged(hidden, cross @ down.T - up @ hidden)
        missing = cross - up @ (down @ gram)  # Σ w (y − U V z) zᵀ
        seen = up.T if self._metric is None else up.T @ self._metric
        inner = seen @ up
        inner.diagonal().add_(1e-9 * float(inner.diagonal().mean()) + 1e-300)
        down = down + self._ridged(gram, torch.linalg.solve(inner, seen @ missing))
        return up, down, self._bias(up @ down, mean, wanted)

    def _bias(self, matrix: Tensor, mean: Tensor, wanted: Tensor) -> Tensor | None:
        """Return the bias with which the mean output is the wanted one; None without a bias."""
        if not self._has_bias:
            return None
        assert self._origin is not None
        start, goal = (self._sum(part) for part in self._origin)
        return goal + wanted - matrix @ (start + mean)

    def _ridged(self, gram: Tensor, right: Tensor) -> Tensor:
        """Return X [a, b] with X (gram + λ I) = right, λ a share of gram's mean diagonal."""
        damped = gram.clone()
        damped.diagonal().add_(max(self._ridge * float(gram.diagonal().mean()), 1e-300))
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):  # rounding left a gram that is not positive definite
            solved: Tensor = torch.linalg.solve(damped, right, left=False)
            return solved
        return torch.cholesky_solve(right.T, factor).T

    def _sum(self, part: Tensor) -> Tensor:
        """Return a tensor where, and as, moments are summed."""
        return part.to(self._home).double()
