"""What a runtime is, and the registry of runtimes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from compressor.forward import Forward, Inputs
from compressor.registry import Registry

Timed = Callable[[], object]
"""One forward, on inputs that were given before."""


class Runtime(Protocol):
    """A way of running a model. One file each."""

    @property
    def name(self) -> str:
        """Return the name it is registered under."""
        ...

    def prepare(self, model: nn.Module, forward: Forward, inputs: Inputs) -> Timed:
        """Make a model ready and return one forward of it.

        Args:
            model: The model, in eval mode, left as it is.
            forward: How it is called.
            inputs: Inputs of B samples, on the model's device.

        Raises:
            ModelError: If the runtime cannot run the model.
            MissingExtraError: If a package is missing.
        """
        ...


RUNTIMES: Registry[Runtime] = Registry(
    "runtime", group="runtimes", modules=("compressor.evaluation.runtimes",)
)
