"""Counting floating-point operations with torch's own counter."""

from __future__ import annotations

from torch import no_grad, nn
from torch.utils.flop_counter import FlopCounterMode

from compressor.forward import Inputs, batch_length, call


def count_flops(model: nn.Module, inputs: Inputs) -> tuple[int, dict[str, int]]:
    """Return FLOPs per sample of one forward, in all and by module name.

    A multiply-add counts two, as torch's FlopCounterMode has it. Meta tensors will do.

    Args:
        model: The model, in eval mode.
        inputs: Inputs of B samples.
    """
    counter = FlopCounterMode(display=False)
    with no_grad(), counter:
        call(model, inputs)
    samples = batch_length(inputs)
    root = type(model).__name__
    by_module = {
        name.removeprefix(f"{root}."): sum(counts.values()) // samples
        for name, counts in counter.get_flop_counts().items()
        if name.startswith(f"{root}.")
    }
    return counter.get_total_flops() // samples, by_module
