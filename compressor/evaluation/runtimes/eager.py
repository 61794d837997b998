"""``eager``: torch as it is, one operator after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compressor.evaluation.runtimes.runtime import RUNTIMES, Timed
from compressor.forward import Forward, Inputs


@dataclass(frozen=True)
class Eager:
    """The module itself."""

    name: str = "eager"

    def prepare(self, model: nn.Module, forward: Forward, inputs: Inputs) -> Timed:
        """Return a call of the module."""
        return lambda: forward(model, inputs)


RUNTIMES.register("eager")(Eager())
