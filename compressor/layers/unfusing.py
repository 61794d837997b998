"""The model that is measured: fused modules taken apart wherever that computes the same."""

from __future__ import annotations

import torch
from torch import nn

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
    taken = model
    with torch.no_grad():
        expected = logits_of(call(model, probe))
        for fusion in dict.fromkeys(fusions.values()):
            trial = structural_copy(taken)
            unfuse(trial, [name for name, found in fusions.items() if found == fusion])
            try:
                logits = logits_of(call(trial, probe))
            except Exception:  # any error at all means that something reads what is gone
                continue
            if logits.is_meta or _alike(logits, expected):
                taken = trial
    return taken


def _alike(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    if logits.shape != expected.shape:
        return False
    scale = float(expected.abs().max().clamp_min(1e-30))
    return float((logits - expected).abs().max()) <= TOLERANCE * scale
