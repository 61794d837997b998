"""One safetensors file of the factors, for runtimes that bring their own model code."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import Tensor

from compressor.checkpoint.export.exporter import EXPORTERS
from compressor.checkpoint.export.logits import as_function
from compressor.checkpoint.storage import cast_state
from compressor.layers.lowrank import lowrank_layers
from compressor.models import LoadedModel
from compressor.models.loading import load_exactly
from compressor.models.weights import read_state_dict


class SafetensorsExporter:
    """Tensors by the names they have in memory; kinds and ranks are JSON in the header.

    A layer ``x`` of rank r has ``x.weight`` [m, r] and ``x.down.weight`` [r, n] (convolutions with
    their kernel axes), and computes ``weight · (down.weight · z) + bias``. Of the kind
    ``conv2d-spatial`` both are convolutions, [r, c, kh, 1] and then [m, r, 1, kw].
    """

    name = "safetensors"
    packages: tuple[str, ...] = ()
    suffix: str | None = ".safetensors"
    note: str | None = None

    def tolerance(self, model: LoadedModel) -> float:
        """Return 0: nothing is computed."""
        del model
        return 0.0

    def write(self, model: LoadedModel, example: dict[str, Tensor], path: Path) -> None:
        """Write every tensor once; further names of a shared one stand in the header."""
        from safetensors.torch import save_file

        del example
        first: dict[int, str] = {}
        aliases: dict[str, str] = {}
        tensors: dict[str, Tensor] = {}
        for key, tensor in cast_state(model.module, model.storage_dtypes).items():
            if id(tensor) in first:
                aliases[key] = first[id(tensor)]
            else:
                first[id(tensor)] = key
                tensors[key] = tensor
        layers = {
            name: {"kind": layer.kind, "rank": layer.rank}
            for name, layer in lowrank_layers(model.module).items()
        }
        metadata = {
            "format": "pt",
            "architecture": type(model.module).__name__,
            "lowrank": json.dumps(layers),
            "shared": json.dumps(aliases),
        }
        save_file(tensors, path, metadata)

    def run(self, model: LoadedModel, path: Path, inputs: dict[str, Tensor]) -> Tensor:
        """Read the file into another copy of the architecture, and call it."""
        module = copy.deepcopy(model.module)
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))
        load_exactly(module, read_state_dict(path), where=str(path))
        with torch.no_grad():
            logits = as_function(module, inputs)(**inputs)
        assert isinstance(logits, Tensor)
        return logits


EXPORTERS.register("safetensors")(SafetensorsExporter())
