"""What every export format gives, and the registry of formats."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from compressor.models import LoadedModel
from compressor.registry import Registry


class Exporter(Protocol):
    """One format that a model can be written in. A format is one file.

    Attributes:
        name: What ``--to`` calls it.
        packages: Import names of optional packages that it needs.
        suffix: Ending of the file that it writes; None where it writes a directory.
        note: What a person should know about every file of the format, or None.
    """

    name: str
    packages: tuple[str, ...]
    suffix: str | None
    note: str | None

    def tolerance(self, model: LoadedModel) -> float:
        """Return how far outputs may be off, as a share of the largest (or of 1, if larger)."""
        ...

    def write(self, model: LoadedModel, example: dict[str, Tensor], path: Path) -> None:
        """Write the model to ``path``, which does not exist yet.

        Args:
            model: The model, on the CPU and in eval mode.
            example: Inputs of two or more samples by name, for formats that trace a forward.
            path: File or directory to write.

        Raises:
            ModelError: If the format cannot hold the model.
        """
        ...

    def run(self, model: LoadedModel, path: Path, inputs: dict[str, Tensor]) -> Tensor:
        """Return what the written model makes of ``inputs``, without using the one in memory.

        Args:
            model: What was written, for its architecture.
            path: What `write` wrote.
            inputs: Inputs by name, of any number of samples.
        """
        ...


EXPORTERS: Registry[Exporter] = Registry(
    "export format",
    group="exporters",
    modules=(
        "compressor.checkpoint.export.onnx",
        "compressor.checkpoint.export.torch_export",
        "compressor.checkpoint.export.dense",
        "compressor.checkpoint.export.safetensors",
    ),
)


def stored_precision(model: LoadedModel) -> torch.dtype:
    """Return the coarsest floating-point type that the model is stored in."""
    dtypes = set(model.storage_dtypes.values()) or {torch.float32}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
