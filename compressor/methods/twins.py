"""Two models in one forward: the dense one on the first half of a batch, its copy on the second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compressor.forward import Inputs, joined

Meet = Callable[[Tensor, Tensor, Tensor], None]
"""What is called with both halves of a module's input and the dense output of the first."""


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
        meet: Meet,
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


def doubled(inputs: Inputs) -> Inputs:
    """Return a batch that holds every sample twice, once in each half."""
    return joined([(inputs, None)] * 2)[0]
