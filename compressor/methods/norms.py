"""Correcting BatchNorm statistics after truncation, relative to the dense model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compressor.distributed import Group
from compressor.forward import Batches, Forward, Inputs, batch_length
from compressor.layers.surgery import structural_copy
from compressor.progress import SILENT, Progress

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SMALLEST_VARIANCE = 1e-12

Moments = tuple[Tensor, Tensor]
"""Mean [c] and variance [c] of each channel."""

NORM_SAMPLES = 256
"""Samples that corrections are averaged over; each has many positions."""


class NormBatch(NamedTuple):
    """One batch, and the moments of each BatchNorm layer's inputs on it, one for each call."""

    inputs: Inputs
    moments: dict[str, list[Moments]]


NormInputs = tuple[NormBatch, ...]

Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


def has_batch_norms(model: nn.Module) -> bool:
    """Return whether the model has BatchNorm layers with running statistics."""
    return bool(norms_of(model))


def norm_inputs(
    dense: nn.Module,
    batches: Batches,
    *,
    forward: Forward,
    samples: int = NORM_SAMPLES,
) -> NormInputs:
    """Return the moments of every BatchNorm layer's input in the dense model, batch by batch.

    Args:
        dense: The dense model; it is run in eval mode, and nothing of it is touched.
        batches: Calibration batches.
        forward: How to call the model.
        samples: Whole batches are taken until this many samples are reached.
    """
    dense = structural_copy(dense).eval()
    found: list[NormBatch] = []

    def remember(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            del module
            found[-1].moments[name].append(channel_moments(args[0]))

        return hook

    handles = [m.register_forward_pre_hook(remember(n)) for n, m in norms_of(dense).items()]
    seen = 0
    try:
        with torch.inference_mode():
            for inputs, _ in batches:
                found.append(NormBatch(inputs, defaultdict(list)))
                forward(dense, inputs)
                seen += batch_length(inputs)
                if seen >= samples:
                    break
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)


def corrected_norms(
    compressed: nn.Module,
    reference: NormInputs,
    *,
    forward: Forward,
    progress: Progress = SILENT,
) -> nn.Module:
    """Return a copy of ``compressed`` with BatchNorm statistics moved as its inputs have moved.

    running_mean += mean(compressed) − mean(dense) and running_var *= var(compressed)/var(dense),
    averaged over the same calibration batches, layer by layer in forward order: each layer's
    correction is seen by the ones after it. Estimating the statistics anew would instead drag the
    model towards the calibration set's own statistics.

    Corrections are computed in one pass: within a batch, a layer is corrected before the next one
    runs, with the mean of the corrections over the batches so far.

    Args:
        compressed: The factorized model; its own statistics are not touched.
        reference: From `norm_inputs`, of the dense model.
        forward: How to call the model.
        progress: Told of each batch.
    """
    corrected = structural_copy(compressed).eval()
    norms = norms_of(corrected)
    corrections = {name: NormCorrection(module) for name, module in norms.items()}
    expected: dict[str, list[Moments]] = {}

    def correct(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            del module
            corrections[name].meet(expected[name].pop(0), channel_moments(args[0]))

        return hook

    handles = [m.register_forward_pre_hook(correct(n)) for n, m in norms.items()]
    try:
        with torch.inference_mode():
            for batch in progress.track(
                reference, description="correct norms", total=len(reference)
            ):
                expected = {name: list(calls) for name, calls in batch.moments.items()}
                forward(corrected, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return corrected


NormStatistics = dict[str, Moments]
"""Running mean [c] and variance [c] of each BatchNorm layer."""


def norm_statistics(model: nn.Module) -> NormStatistics:
    """Return the statistics of all BatchNorm layers; they are the model's own tensors."""
    return {name: _statistics(module) for name, module in norms_of(model).items()}


def with_norm_statistics(model: nn.Module, statistics: NormStatistics) -> nn.Module:
    """Return a copy of a model with these BatchNorm statistics; tensors are shared with it."""
    copy = structural_copy(model)
    for name, module in norms_of(copy).items():
        module.running_mean, module.running_var = statistics[name]
    return copy


class NormCorrection:
    """The correction of one BatchNorm layer, as batches come.

    Args:
        module: The layer; it is given statistics of its own, which are moved.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._original = _statistics(module)
        self._shifts: list[Tensor] = []
        self._log_ratios: list[Tensor] = []
        for name in ("running_mean", "running_var"):
            setattr(module, name, getattr(module, name).clone())

    def meet(self, dense: Moments, compressed: Moments) -> None:
        """Take in one batch: move the statistics by the mean correction over those so far."""
        (dense_mean, dense_variance), (mean, variance) = dense, compressed
        ratio = variance.clamp_min(_SMALLEST_VARIANCE) / dense_variance.clamp_min(
            _SMALLEST_VARIANCE
        )
        self._shifts.append(mean - dense_mean)
        self._log_ratios.append(ratio.log())
        own_mean, own_variance = _statistics(self._module)
        own_mean.copy_(self._original[0] + torch.stack(self._shifts).mean(0))
        own_variance.copy_(self._original[1] * torch.stack(self._log_ratios).mean(0).exp())

    def join_(self, group: Group) -> None:
        """Take in the batches of all processes; each of them has to call it."""
        if group.size == 1:
            return
        mean, variance = _statistics(self._module)
        summed = torch.stack(
            [
                sum(self._shifts, torch.zeros_like(mean)),
                sum(self._log_ratios, torch.zeros_like(variance)),
                torch.full_like(mean, len(self._shifts)),
            ]
        )
        group.sum_(summed)
        mean.copy_(self._original[0] + summed[0] / summed[2])
        variance.copy_(self._original[1] * (summed[1] / summed[2]).exp())


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NORMS) and module.running_mean is not None
    }


def channel_moments(inputs: Tensor) -> Moments:
    """Return per-channel mean and variance of [B, c, ...]."""
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    return inputs.mean(axes), inputs.var(axes, unbiased=False)


def _statistics(module: nn.Module) -> Moments:
    """Return the running mean and variance of a BatchNorm layer."""
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean, variance
