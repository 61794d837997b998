"""torch.export: a .pt2 file that torch runs without this package or the model's own code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from compressor.checkpoint.export.exporter import EXPORTERS
from compressor.checkpoint.export.logits import TEXT_INPUTS, as_function
from compressor.checkpoint.export.tracing import tracing
from compressor.models import LoadedModel


class TorchExporter:
    """The traced graph with its weights; batch (and text length) are dynamic."""

    name = "torch-export"
    packages: tuple[str, ...] = ()
    suffix: str | None = ".pt2"
    note: str | None = "The .pt2 file holds the weights in float32."

    def tolerance(self, model: LoadedModel) -> float:
        """Return 1e-5: the graph is the model's own, but sums may be fused."""
        del model
        return 1e-5

    def write(self, model: LoadedModel, example: dict[str, Tensor], path: Path) -> None:
        """Trace and save.

        Raises:
            ModelError: If the model cannot be traced with a dynamic batch.
        """
        axes = {0: torch.export.Dim.DYNAMIC}
        if tuple(example) == TEXT_INPUTS:
            axes[1] = torch.export.Dim.DYNAMIC
        with tracing("torch.export", model):
            program = torch.export.export(
                as_function(model.module, example),
                (),
                example,
                dynamic_shapes=dict.fromkeys(example, axes),
                strict=False,
            )
            torch.export.save(program, path)

    def run(self, model: LoadedModel, path: Path, inputs: dict[str, Tensor]) -> Tensor:
        """Load the file and call its graph."""
        del model
        with torch.no_grad():
            logits = torch.export.load(path).module()(**inputs)
        assert isinstance(logits, Tensor)
        return logits


EXPORTERS.register("torch-export")(TorchExporter())
