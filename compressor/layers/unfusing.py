"""The model that is measured: fused modules taken apart wherever that computes the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from compressor.forward import Inputs, call, logits_of
from compressor.layers.surgery import fused_modules, structural_copy, unfuse

TOLERANCE = 1e-3
"""Largest difference of the logits, over the largest logit, that sums in another order make."""


def unfused(model: nn.Module, probe: Inputs) -> nn.Module:
    """Return a copy of ``model``, on its tensors, in which every matrix is a layer of its own.

    A type of fused module whose parents read its parameters, so that the copy does not run or makes
    other logits, is left as it is. A model without fused modules is returned itself.

    Args:
        model: The dense model, in eval mode; on the meta device the logits are not compared.
        probe: Inputs of a few samples, for one forward of each form.
    """
    fusions = fused_modules(model)
    if not fusions:
        return model
    expected = None
    if not any(parameter.is_meta for parameter in model.parameters()):
        with torch.no_grad():
            expected = logits_of(call(model, probe))
    apart = _taken_apart(model, fusions, probe, expected)
    if apart is not None:
        return apart
    found = model
    for fusion in dict.fromkeys(fusions.values()):
        names = [name for name, other in fusions.items() if other == fusion]
        found = _taken_apart(found, names, probe, expected) or found
    return found


def _taken_apart(
    model: nn.Module, names: Iterable[str], probe: Inputs, expected: Tensor | None
) -> nn.Module | None:
    """Return a copy with the named modules taken apart, or None if it does not compute the same."""
    trial = structural_copy(model)
    unfuse(trial, names)
    try:
        with torch.no_grad():
            logits = logits_of(call(trial, probe))
    except Exception:  # any error at all means that something reads what is gone
        return None
    return trial if expected is None or _alike(logits, expected) else None


def _alike(logits: Tensor, expected: Tensor) -> bool:
    if logits.shape != expected.shape:
        return False
    scale = float(expected.abs().max().clamp_min(1e-30))
    return float((logits - expected).abs().max()) <= TOLERANCE * scale
