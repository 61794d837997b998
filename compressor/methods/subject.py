"""What budgets are counted on: a dense model, its candidates, and inputs to run it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from compressor.evaluation.flops import count_flops
from compressor.forward import Inputs
from compressor.layers.candidates import Candidates


@dataclass(frozen=True)
class Subject:
    """A dense model as budgets see it.

    Args:
        model: The dense model.
        candidates: Its layers that can be factorized.
        inputs: From a number of samples to inputs of the size that FLOPs and time are stated at.
        storage_dtypes: Floating-point types in the checkpoint file, by state dict name.
    """

    model: nn.Module = field(repr=False)
    candidates: Candidates
    inputs: Callable[[int], Inputs] = field(repr=False)
    storage_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict, repr=False)

    @cached_property
    def flops(self) -> tuple[int, dict[str, int]]:
        """FLOPs of one sample's forward, in all and by module name."""
        return count_flops(self.model, self.inputs(1))
