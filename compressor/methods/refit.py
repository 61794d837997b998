"""Fitting the second factors anew, layer after layer, on what the compressed layers before give.

A truncation is chosen for the inputs that the dense model gives a layer. In the compressed model
its inputs z' are others, and the errors of all layers add up. So each layer's second factor U and
its bias are solved for again, in forward order, so that its output comes near the dense one's:

    min_{U, b} Σ_t w_t ‖W z_t + b₀ − U V z'_t − b‖² + λ ‖U − U₀‖²,

where U₀ is the truncation's factor, λ a share of the mean diagonal of Σ w_t (V z'_t)(V z'_t)ᵀ
about its mean, and w_t = ‖δ_t‖² the size of the loss's gradient at the row: what no prediction
depends on does not count. The solution is the same in every metric on the outputs. (Inputs that
drift: AA-SVD, arXiv 2604.02119; layer by layer, unweighted: Zhang et al., arXiv 1505.06798, eq. 9.)

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


def refitted(
    dense: nn.Module,
    compressed: nn.Module,
    layers: Mapping[str, Candidate],
    batches: Batches,
    *,
    forward: Forward,
    ridge: float = RIDGE,
    norms: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress = SILENT,
) -> nn.Module:
    """Return a copy of ``compressed`` whose second factors and biases fit the inputs they get.

    Args:
        dense: The dense model, in eval mode.
        compressed: It, factorized, its BatchNorm statistics as they were.
        layers: The candidates by name.
        batches: Calibration batches; the labels are not looked at.
        forward: How to call both models.
        ridge: λ over the mean diagonal of the moments of V z'.
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
    for name, module in dict(twins.named_modules()).items():
        other = modules.get(name)
        if isinstance(other, LowRankEmbedding):  # indices do not drift
            replace_module(twins, name, Twin(module, other, lambda first, second, expected: None))
        elif isinstance(other, LOW_RANK_TYPES) and name in fitting:
            fit = Fit(name, layers[name], module, other, ridge=ridge)
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
    """The weighted ridge regression of one layer's second factor and bias.

    Args:
        name: Name of the layer, for messages.
        layer: The candidate.
        dense: The dense layer.
        compressed: The factorized one; it is given a second factor and a bias of its own.
        ridge: λ over the mean diagonal of the centred moments.
    """

    def __init__(
        self,
        name: str,
        layer: Candidate,
        dense: nn.Module,
        compressed: nn.Module,
        *,
        ridge: float,
    ) -> None:
        self._name, self._dense, self._compressed = name, dense, compressed
        self._kind, self._ridge = LAYER_KINDS.get(layer.kind), ridge
        for part in ("weight", "bias"):
            value = getattr(compressed, part)
            if value is not None:
                own = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
                setattr(compressed, part, own)
        self._start = self._kind.factors(compressed)[0].double().clone()
        rows, rank = self._start.shape
        self._total = 0.0
        self._origin: tuple[Tensor, Tensor] | None = None  # sums are about these means
        self._sums = (self._start.new_zeros(rank), self._start.new_zeros(rows))
        self._gram = self._start.new_zeros(rank, rank)
        self._cross = self._start.new_zeros(rows, rank)

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
        layer: Any = self._compressed
        hidden = self._kind.output_rows(self._dense, layer.down(inputs), samples)
        wanted = self._kind.output_rows(self._dense, expected, samples)
        if mask is not None and mask.shape == energies.shape:
            energies = energies * (mask != 0)
        weights = energies.flatten()
        total = float(weights.sum())
        if not total > 0:
            return  # the predictions depend on nothing of it
        self._add(hidden.flatten(0, 1).double(), wanted.flatten(0, 1).double(), weights)
        if not (torch.isfinite(self._gram).all() and torch.isfinite(self._cross).all()):
            raise LayerError(self._name, "it cannot be refitted: its outputs hold NaN or Inf")
        up, bias = self.solution()
        self._kind.fill(self._compressed, up, self._kind.factors(self._compressed)[1], bias)

    def _add(self, hidden: Tensor, wanted: Tensor, weights: Tensor) -> None:
        total = weights.sum()
        if self._origin is None:
            centred = layer_has_bias(self._compressed)
            self._origin = (
                weights @ hidden / total if centred else torch.zeros_like(hidden[0]),
                weights @ wanted / total if centred else torch.zeros_like(wanted[0]),
            )
        hidden, wanted = hidden - self._origin[0], wanted - self._origin[1]
        weighted = hidden * weights[:, None]
        self._total += float(total)
        self._sums = (self._sums[0] + weighted.sum(0), self._sums[1] + weights @ wanted)
        self._gram += weighted.T @ hidden
        self._cross += wanted.T @ weighted

    def solution(self) -> tuple[Tensor, Tensor | None]:
        """Return the second factor [m, r] and the bias [m] of all batches so far."""
        assert self._origin is not None
        has_bias = layer_has_bias(self._compressed)
        hidden, wanted = (part / self._total for part in self._sums)
        gram, cross = self._gram / self._total, self._cross / self._total
        if has_bias:
            gram = gram - torch.outer(hidden, hidden)
            cross = cross - torch.outer(wanted, hidden)
        damped = gram.clone()
        damped.diagonal().add_(max(self._ridge * float(gram.diagonal().mean()), 1e-300))
        up = self._start + torch.linalg.solve(damped, (cross - self._start @ gram).T).T
        if not has_bias:
            return up, None
        return up, self._origin[1] + wanted - up @ (self._origin[0] + hidden)


def layer_has_bias(module: nn.Module) -> bool:
    """Return whether a layer adds a bias."""
    return getattr(module, "bias", None) is not None


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
