"""Correcting BatchNorm statistics after truncation, relative to the dense model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from compressor.forward import Batches, Forward
from compressor.layers.surgery import structural_copy
from compressor.progress import SILENT, Progress

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SMALLEST_VARIANCE = 1e-12

Moments = tuple[Tensor, Tensor]
"""Mean [c] and variance [c] of each channel."""

Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


def has_batch_norms(model: nn.Module) -> bool:
    """Return whether the model has BatchNorm layers with running statistics."""
    return bool(_norms(model))


def corrected_norms(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Batches,
    *,
    forward: Forward,
    progress: Progress = SILENT,
    total: int | None = None,
) -> nn.Module:
    """Return a copy of ``compressed`` with BatchNorm statistics moved as its inputs have moved.

    running_mean += mean(compressed) − mean(dense) and running_var *= var(compressed)/var(dense),
    averaged over the same calibration batches, layer by layer in forward order: each layer's
    correction is seen by the ones after it. Estimating the statistics anew would instead drag the
    model towards the calibration set's own statistics.

    Corrections are computed in one pass: within a batch, a layer is corrected before the next one
    runs, with the mean of the corrections over the batches so far.

    Args:
        dense: The dense model; it is run in eval mode, and nothing of it is touched.
        compressed: The factorized model; its own statistics are not touched.
        batches: Calibration batches.
        forward: How to call both models.
        progress: Told of each batch.
        total: Number of batches.
    """
    dense, corrected = structural_copy(dense).eval(), structural_copy(compressed).eval()
    norms = _norms(corrected)
    original = {name: _statistics(module) for name, module in norms.items()}
    for module in norms.values():
        for name in ("running_mean", "running_var"):
            setattr(module, name, getattr(module, name).clone())
    seen: dict[str, list[Moments]] = defaultdict(list)  # one for each call of a layer
    shifts: dict[str, list[Tensor]] = defaultdict(list)
    ratios: dict[str, list[Tensor]] = defaultdict(list)

    def remember(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            del module
            seen[name].append(_moments(args[0]))

        return hook

    def correct(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            mean, variance = _moments(args[0])
            dense_mean, dense_variance = seen[name].pop(0)
            shifts[name].append(mean - dense_mean)
            ratios[name].append(
                variance.clamp_min(_SMALLEST_VARIANCE)
                / dense_variance.clamp_min(_SMALLEST_VARIANCE)
            )
            _apply(module, original[name], shifts[name], ratios[name])

        return hook

    dense_hooks = [m.register_forward_pre_hook(remember(n)) for n, m in _norms(dense).items()]
    hooks = [m.register_forward_pre_hook(correct(n)) for n, m in norms.items()]
    try:
        with torch.inference_mode():
            for inputs, _ in progress.track(batches, description="correct norms", total=total):
                seen.clear()
                forward(dense, inputs)
                forward(corrected, inputs)
    finally:
        for handle in (*dense_hooks, *hooks):
            handle.remove()
    return corrected


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NORMS) and module.running_mean is not None
    }


def _statistics(module: nn.Module) -> Moments:
    """Return the running mean and variance of a BatchNorm layer."""
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean, variance


def _moments(inputs: Tensor) -> Moments:
    """Return per-channel mean and variance of [B, c, ...]."""
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    return inputs.mean(axes), inputs.var(axes, unbiased=False)


def _apply(
    module: nn.Module,
    original: Moments,
    shifts: list[Tensor],
    ratios: list[Tensor],
) -> None:
    """Set the statistics to the original ones, moved by the mean correction so far."""
    mean, variance = _statistics(module)
    mean.copy_(original[0] + torch.stack(shifts).mean(0))
    variance.copy_(original[1] * torch.stack(ratios).log().mean(0).exp())
