"""Fitting the factors anew, layer after layer, on what the compressed layers before give.

A truncation is chosen for the inputs that the dense model gives a layer. In the compressed model
its inputs z' are others, and the errors of all layers add up. So each layer is solved for again, in
forward order, that its output comes near the dense one's:

    min Σ_t w_t ‖W z_t + b₀ − U V z'_t − b‖²_F

first in U, then in V, the bias b with both; w_t = ‖δ_t‖² is the size of the loss's gradient at the
row: what no prediction depends on does not count. U is the same in every metric F on the outputs,
V is taken in the Fisher's where it is known. Both are drawn towards the truncation's factors by a
ridge, a share of the mean diagonal of the inputs' moments about their mean, so that few samples do
little. (Inputs that drift: AA-SVD, arXiv 2604.02119; layer by layer, unweighted, in closed form:
Zhang et al., arXiv 1505.06798, eq. 9.)

Both models run in one forward, the dense one on the first half of a batch and the compressed one on
the second, so that a layer meets both inputs at once and is solved before the next one runs.
Moments are summed over the batches; each batch meets a prefix solved on all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.collapse.row_energy import RowEnergies, row_energies
from compressor.errors import LayerError
from compressor.forward import Batches, Forward, Inputs, batch_length, token_mask
from compressor.layers.candidates import Candidate
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.lowrank import LOW_RANK_TYPES, LowRankEmbedding
from compressor.layers.surgery import replace_module, structural_copy
from compressor.methods.norms import NormCorrection, channel_moments, norms_of
from compressor.progress import SILENT, Progress
from compressor.tokens import TokenForward, before_head

RIDGE = 0.01
SAMPLES = 512
"""Calibration samples that are fitted to."""

MOMENTS = 1 << 30
"""Bytes that the inputs' moments may take of all layers; the first factors stay as they are where
they would take more."""


def refitted(
    dense: nn.Module,
    compressed: nn.Module,
    layers: Mapping[str, Candidate],
    batches: Batches,
    *,
    forward: Forward,
    metrics: Mapping[str, Tensor] | None = None,
    ridge: float = RIDGE,
    norms: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress = SILENT,
) -> nn.Module:
    """Return a copy of ``compressed`` whose factors and biases fit the inputs they get.

    Args:
        dense: The dense model, in eval mode.
        compressed: It, factorized, its BatchNorm statistics as they were.
        layers: The candidates by name.
        batches: Calibration batches; the labels are not looked at.
        forward: How to call both models.
        metrics: Metric F [m, m] on the outputs, by layer; the identity for those without.
        ridge: λ over the mean diagonal of the moments that are inverted.
        norms: Correct BatchNorm statistics relative to the dense model in the same pass.
        samples: Whole batches are taken until this many samples are reached.
        seed: Of the gradients' random signs.
        progress: Told of each batch.

    Raises:
        LayerError: If a layer's outputs or their gradients hold NaN or Inf.
    """
    fitted = structural_copy(compressed).eval()
    twins = structural_copy(dense).eval()
    current = _Current()
    modules = dict(fitted.named_modules())
    fitting = list(layers)
    if isinstance(forward, TokenForward):  # it stops before the head
        fitting = [name for name in layers if before_head(dense, name)]
    # Of language models the second factors alone: that is what was measured to help them.
    held = sum(8 * n * (m + n) for m, n in (layers[name].shape for name in fitting))
    both = held <= MOMENTS and not isinstance(forward, TokenForward)
    for name, module in dict(twins.named_modules()).items():
        other = modules.get(name)
        if isinstance(other, LowRankEmbedding):  # indices do not drift
            replace_module(twins, name, Twin(module, other, lambda first, second, expected: None))
        elif isinstance(other, LOW_RANK_TYPES) and name in fitting:
            metric = (metrics or {}).get(name)
            fit = Fit(name, layers[name], module, other, ridge=ridge, metric=metric, both=both)
            replace_module(twins, name, Twin(module, other, _fitting(fit, name, current)))
    if norms:
        for name, module in norms_of(twins).items():
            correction = NormCorrection(modules[name])
            replace_module(twins, name, Twin(module, modules[name], _correcting(correction)))
    names = [
        name
        for name in fitting
        if isinstance(modules[name], LOW_RANK_TYPES)
        and not isinstance(modules[name], LowRankEmbedding)
    ]
    if not names:
        return fitted
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    for inputs, _ in progress.track(batches, description="refit", total=None):
        current.energies = row_energies(
            dense, layers, names, inputs, forward=forward, generator=generator
        )
        current.samples = batch_length(inputs)
        current.mask = token_mask(inputs)
        with torch.no_grad():
            forward(twins, doubled(inputs))
        seen += current.samples
        if seen >= samples:
            break
    return fitted


def can_refit(layers: Mapping[str, Candidate]) -> bool:
    """Return whether every layer gets the dense rows in the first half of a doubled batch.

    Experts of a mixture do not: both models' tokens are routed apart.
    """
    return all(layer.kind != "expert" for layer in layers.values())


class Twin(nn.Module):
    """Runs the first half of what comes through one module, and the second half through another.

    Args:
        dense: Takes the first half.
        compressed: Takes the second half.
        meet: Called before that with both halves and the dense output; it may change
            ``compressed``.
    """

    def __init__(
        self,
        dense: nn.Module,
        compressed: nn.Module,
        meet: Callable[[Tensor, Tensor, Tensor], None],
    ) -> None:
        super().__init__()
        self.dense, self.compressed, self._meet = dense, compressed, meet

    def forward(self, input: Tensor) -> Tensor:
        """Map [2L, ...] to [2L, ...]."""
        first, second = input.chunk(2)
        expected = self.dense(first)
        self._meet(first, second, expected)
        return torch.cat([expected, self.compressed(second)])

    def __getattr__(self, name: str) -> Any:
        """Give what a parent reads of a layer (its weight's type, its width) from the dense one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("dense"), name)


class Fit:
    """The weighted ridge regression of one layer's factors and bias.

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
        self._origin: tuple[Tensor, Tensor] | None = None  # sums are about these means
        self._sums = (up.new_zeros(columns), up.new_zeros(rows))
        self._gram = up.new_zeros(columns, columns)
        self._cross = up.new_zeros(rows, columns)

    def meet(
        self, inputs: Tensor, expected: Tensor, samples: int, energies: Tensor, mask: Tensor | None
    ) -> None:
        """Take in one batch and solve.

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
        if not (torch.isfinite(self._gram).all() and torch.isfinite(self._cross).all()):
            raise LayerError(self._name, "it cannot be refitted: its outputs hold NaN or Inf")
        self._kind.fill(self._compressed, *self.solution())

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
        self._gram += self._sum(weighted.T @ rows)
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
        solved: Tensor = torch.linalg.solve(damped, right, left=False)
        return solved

    def _sum(self, part: Tensor) -> Tensor:
        """Return a tensor where, and as, moments are summed."""
        return part.to(self._home).double()


def doubled(inputs: Inputs) -> Inputs:
    """Return a batch that holds every sample twice, once in each half."""
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs])
    if isinstance(inputs, Mapping):
        return {key: torch.cat([value, value]) for key, value in inputs.items()}
    return tuple(torch.cat([value, value]) for value in inputs)


class _Current:
    """What the layers have to know of the batch that runs."""

    samples = 0
    mask: Tensor | None = None
    energies: RowEnergies


def _fitting(fit: Fit, name: str, current: _Current) -> Callable[[Tensor, Tensor, Tensor], None]:
    def meet(first: Tensor, second: Tensor, expected: Tensor) -> None:
        del first
        energies = current.energies[name].pop(0)
        fit.meet(second, expected, current.samples, energies, current.mask)

    return meet


def _correcting(correction: NormCorrection) -> Callable[[Tensor, Tensor, Tensor], None]:
    def meet(first: Tensor, second: Tensor, expected: Tensor) -> None:
        del expected
        correction.meet(channel_moments(first), channel_moments(second))

    return meet
