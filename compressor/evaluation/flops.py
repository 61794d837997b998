"""Counting floating-point operations with torch's own counter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compressor.forward import Inputs, batch_length, call


def count_flops(model: nn.Module, inputs: Inputs) -> tuple[int, dict[str, int]]:
    """Return FLOPs per sample of one forward, in all and by module name.

    A multiply-add counts two, as torch's FlopCounterMode has it: matrix products and convolutions
    count, element-wise work does not. A module's figure holds those of the modules inside it.
    Meta tensors will do.

    Args:
        model: The model, in eval mode.
        inputs: Inputs of B samples, on the model's device.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _visible_attention(), counter:
        call(model, inputs)
    samples = batch_length(inputs)
    root = type(model).__name__
    by_module = {
        name.removeprefix(f"{root}."): sum(counts.values()) // samples
        for name, counts in counter.get_flop_counts().items()
        if name.startswith(f"{root}.")
    }
    return counter.get_total_flops() // samples, by_module


@contextmanager
def _visible_attention() -> Iterator[None]:
    """Compute attention by plain matrix products, which the counter knows.

    It has no formula for the CPU's fused attention, nor for the fast path of torch's own encoder
    layers, and would pass over both in silence.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
