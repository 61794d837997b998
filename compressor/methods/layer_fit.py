"""The weighted ridge regression of one low-rank layer on the inputs that it gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compressor.collapse.weighty import weighty
from compressor.distributed import ALONE, Group
from compressor.errors import LayerError
from compressor.layers.candidates import Candidate
from compressor.layers.kinds import LAYER_KINDS
from compressor.methods.aside import Aside
from compressor.methods.pair_sums import PairSums
from compressor.methods.separable import folded_sum, solve_filters, widened

OUTPUT_DAMPING = 1e-3
"""Share of its mean eigenvalue that is added to the metric on outputs."""


class LayerFit:
    """The regression of one layer's factors and bias, summed over batches.

    Args:
        name: Name of the layer, for messages.
        layer: The candidate.
        dense: The dense layer.
        compressed: The factorized one; it is given parameters of its own.
        ridge: λ over the mean diagonal of the centred moments.
        metric: Gives F [m, m], positive semi-definite; None is the identity. It is called when F
            is used, which may lie on disk.
        both: Fit the first factor too, which takes the moments of the inputs themselves.
        group: The processes that share the batches.
        left_out: Share of a batch's weights that the rows may have together that are left out.
    """

    def __init__(
        self,
        name: str,
        layer: Candidate,
        dense: nn.Module,
        compressed: nn.Module,
        *,
        ridge: float,
        metric: Callable[[], Tensor | None] | None = None,
        both: bool = True,
        group: Group = ALONE,
        left_out: float = 0.0,
    ) -> None:
        self._name, self._dense, self._compressed = name, dense, compressed
        self._kind, self._ridge, self._metric = LAYER_KINDS.get(layer.kind), ridge, metric
        self._group, self._left_out = group, left_out
        self._has_bias = getattr(compressed, "bias", None) is not None
        self._taps = layer.taps
        # Those of the model that it was copied from: not another set in memory.
        self._start = tuple(part.detach() for part in self._kind.factors(compressed))
        for module in compressed.modules():
            for part, value in list(module.named_parameters(recurse=False)):
                own = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
                setattr(module, part, own)
        up, self._both = self._start[0], both
        # MPS has no float64; moments are summed and solved on the CPU then.
        self.home = torch.device("cpu") if up.device.type == "mps" else up.device
        self._sides = layer.shape[1] if both else up.shape[1], up.shape[0]
        self._new = False  # whether anything came since it was solved
        self._sums: PairSums | None = None  # there only while it is needed: they are large
        self._aside = False

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
            else self._kind.rows(low, low.down(inputs), samples)
        )
        wanted = self._kind.output_rows(self._dense, expected, samples)
        if rows is None:
            raise LayerError(self._name, "its input rows do not belong to samples")
        if mask is not None and mask.shape == energies.shape:
            energies = energies * (mask != 0).to(energies.device)
        weights = energies.flatten()
        if not float(weights.sum()) > 0:
            return  # the predictions depend on nothing of it
        rows, wanted = rows.flatten(0, 1), wanted.flatten(0, 1)
        index = weighty(weights, self._left_out) if self._left_out else None
        if index is not None:
            rows, wanted = (part.index_select(0, index.to(part.device)) for part in (rows, wanted))
            weights = weights[index]
        self._summed().add(rows, wanted, weights, centred=self._has_bias)
        self._new = True

    def solve(self) -> None:
        """Give the compressed layer the factors and the bias that fit all batches so far.

        Of several processes each has to call it.
        """
        if not self._group.largest(int(self._new)):
            return
        sums = self._summed().joined(self._group)
        if not (torch.isfinite(sums.gram.matrix).all() and torch.isfinite(sums.cross).all()):
            raise LayerError(self._name, "it cannot be refitted: its outputs hold NaN or Inf")
        self._kind.fill(self._compressed, *self.solution(sums))
        self._new = False

    def set_aside(self, aside: Aside) -> None:
        """Have the sums lie elsewhere until more rows come."""
        if self._sums is not None and aside.put(self._name, self._sums):
            self._sums, self._aside = None, True
        elif self._sums is not None and not self._sums.unit:
            self._sums = None  # all rows were other processes'

    def take_back(self, aside: Aside) -> None:
        """Have the sums in memory again."""
        if self._aside:
            self._sums, self._aside = aside.take(self._name), False

    def forget(self) -> None:
        """Give up the sums: no batch will come any more."""
        self._sums = None

    def _summed(self) -> PairSums:
        if self._sums is None:
            self._sums = PairSums.empty(*self._sides, self.home)
        return self._sums

    def solution(self, sums: PairSums) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the factors up [m, r] and down [r, n], and the bias [m], that fit these sums."""
        mean, wanted = (part / sums.weight for part in sums.sums)
        gram, cross = sums.gram.matrix / sums.weight, sums.cross / sums.weight
        if self._has_bias:
            gram.addr_(mean, mean, alpha=-1)  # these are large: no more copies than needed
            cross.addr_(wanted, mean, alpha=-1)
            mean, wanted = mean + sums.origins[0], wanted + sums.origins[1]
        up, down = (part.to(self.home).double() for part in self._start)
        if not self._both:  # what is summed are V z' already
            up = up + self._ridged(gram, cross - up @ gram)
            return up, down, self._bias(up, mean, wanted)
        hidden = down @ gram @ down.T
        up = up + self._ridged(hidden, cross @ down.T - up @ hidden)
        missing = cross - up @ (down @ gram)  # Σ w (y − U V z) zᵀ
        metric = None if self._metric is None else self._metric()
        seen = up.T if metric is None else _damped(up.T, metric)
        inner = seen @ up
        inner.diagonal().add_(1e-9 * float(inner.diagonal().mean()) + 1e-300)
        if self._taps > 1:
            down = down + self._filters(inner, gram, seen @ missing)
        else:
            down = down + self._ridged(gram, torch.linalg.solve(inner, seen @ missing))
        return up, down, self._bias(up @ down, mean, wanted)

    def _bias(self, matrix: Tensor, mean: Tensor, wanted: Tensor) -> Tensor | None:
        """Return the bias with which the mean output is the wanted one; None without a bias."""
        return wanted - matrix @ mean if self._has_bias else None

    def _ridged(self, gram: Tensor, right: Tensor) -> Tensor:
        """Return X [a, b] with X (gram + λ I) = right, λ a share of gram's mean diagonal.

        The λ I stays added to ``gram``.
        """
        gram.diagonal().add_(max(self._ridge * float(gram.diagonal().mean()), 1e-300))
        factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):  # rounding left a gram that is not positive definite, or singular
            finite = bool(torch.isfinite(gram).all())  # no eigenvalues are found else
            inverse: Tensor = torch.linalg.pinv(gram, hermitian=True) if finite else gram
            return right @ inverse
        return torch.cholesky_solve(right.T, factor).T

    def _filters(self, inner: Tensor, gram: Tensor, right: Tensor) -> Tensor:
        """Return the step of the vertical filters, widened: all taps of a row share one filter."""
        damped = gram.clone()
        damped.diagonal().add_(max(self._ridge * float(gram.diagonal().mean()), 1e-300))
        step = solve_filters(inner, damped, folded_sum(right, self._taps), self._taps)
        return widened(step, self._taps)


def _damped(left: Tensor, metric: Tensor) -> Tensor:
    """Return L (F + λ I), λ a share of F's mean diagonal.

    Directions that no calibration sample depends on may matter to others.
    """
    return left @ metric + left * (OUTPUT_DAMPING * float(metric.diagonal().mean()))
