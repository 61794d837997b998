"""What budgets are counted on: a dense model, its candidates, and inputs to run it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from compressor.evaluation.flops import count_flops
from compressor.evaluation.latency import model_milliseconds
from compressor.evaluation.speed_table import LayerSpeed, speed_table
from compressor.forward import Forward, Inputs
from compressor.layers.candidates import Candidates


@dataclass(frozen=True)
class Subject:
    """A dense model as budgets see it.

    Args:
        model: The dense model.
        candidates: Its layers that can be factorized.
        inputs: From a number of samples to inputs of the size that FLOPs and time are stated at.
        storage_dtypes: Floating-point types in the checkpoint file, by state dict name.
        forward: How the model is called where it is timed.
        runtime: Registered runtime that whole models are timed in.
    """

    model: nn.Module = field(repr=False)
    candidates: Candidates
    inputs: Callable[[int], Inputs] = field(repr=False)
    storage_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict, repr=False)
    forward: Forward = field(default_factory=Forward)
    runtime: str = "eager"
    _milliseconds: dict[int, float] = field(default_factory=dict, repr=False, compare=False)
    _tables: dict[int, dict[str, LayerSpeed]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _timed: dict[object, LayerSpeed] = field(default_factory=dict, repr=False, compare=False)

    def of(self, candidates: Candidates) -> Subject:
        """Return the subject with its layers in other forms; what was timed stays known."""
        if candidates.layers == self.candidates.layers:
            return self
        return replace(self, candidates=candidates, _tables={})

    @cached_property
    def flops(self) -> tuple[int, dict[str, int]]:
        """FLOPs of one sample's forward, in all and by module name."""
        return count_flops(self.model, self.inputs(1))

    def dense_milliseconds(self, batch: int) -> float:
        """Return the time of the dense model's forward at a batch size, measured once."""
        if batch not in self._milliseconds:
            self._milliseconds[batch] = model_milliseconds(
                self.model, self.inputs(batch), forward=self.forward, runtime=self.runtime
            )
        return self._milliseconds[batch]

    def speed_table(self, batch: int) -> dict[str, LayerSpeed]:
        """Return what each layer takes at a batch size, dense and factorized, measured once."""
        if batch not in self._tables:
            self._tables[batch] = speed_table(
                self.model,
                self.candidates.layers,
                self.inputs(batch),
                forward=self.forward,
                known=self._timed,
            )
        return self._tables[batch]
